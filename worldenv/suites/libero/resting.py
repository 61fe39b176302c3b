"""Pictures of a scene, faster: the meshes that rest are drawn once, and what moves over them."""

from typing import Any

import mujoco
import numpy as np

LAYER = mujoco.mjNGROUP - 1  # group of geoms that nothing uses
STILL = 1e-5  # m, and of a rotation matrix: a mesh that has moved by less rests; a pixel shows some 3 mm


class RestingMeshes:
    """Draws what a fixed camera sees in two layers: meshes that have not moved since `forget`, and everything else.

    The first layer is drawn again only when one of its meshes has moved; that mesh then leaves it. Each pixel shows the
    nearer layer: without multisampling and shadows, this is the picture of the whole scene, but for surfaces at the
    same depth. A scene with anything transparent is drawn as a whole, and so is what a moving camera sees. Cameras,
    lights and colours should not change between two calls of `forget`.
    """

    def __init__(self, model: Any, data: Any, context: Any):  # MjModel, MjData; robosuite's context
        self.model, self.data, self.context = model, data, context
        shown = context.vopt.geomgroup[model.geom_group] == 1
        self.meshes = np.flatnonzero(shown & (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH))
        self.forget()

    def forget(self) -> None:
        """Take all meshes for resting: a new episode begins."""
        self.places, self.rests = self._places(), np.ones(len(self.meshes), dtype=bool)
        self.draws_whole = self._is_clear()
        self.layers: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # of cameras: colours and depths

    def picture(self, camera: int, side: int) -> np.ndarray:  # [side, side, 3] uint8, upside down
        """What the camera sees now."""
        if self.draws_whole or self.model.cam_bodyid[camera]:
            return self._drawn(camera, side, depth=False)
        rests = self.rests & (np.abs(self._places() - self.places).max(1) < STILL)
        if rests.sum() < self.rests.sum():
            self.rests, self.layers = rests, {}
        groups = self.model.geom_group.copy()
        self.model.geom_group[self.meshes[self.rests]] = LAYER
        try:
            if camera not in self.layers:
                self.layers[camera] = self._layer(camera, side)
            colour, depth = self._drawn(camera, side)
        finally:
            self.model.geom_group[:] = groups  # labels are drawn by group, too
        behind, far = self.layers[camera]
        return np.where((far <= depth)[..., None], behind, colour)

    def _is_clear(self) -> bool:
        """Whether anything is transparent; robosuite hides sites by a negative alpha, which it sets in a reset."""
        model, shown = self.model, self.context.vopt
        geoms = np.flatnonzero(shown.geomgroup[model.geom_group])
        has_material = geoms[model.geom_matid[geoms] >= 0]
        alphas = model.geom_rgba[geoms, 3], model.mat_rgba[model.geom_matid[has_material], 3]
        alphas += (model.site_rgba[shown.sitegroup[model.site_group] == 1, 3],)
        return bool(((np.concatenate(alphas) > 0) & (np.concatenate(alphas) < 1)).any())

    def _places(self) -> np.ndarray:  # [meshes, 12]
        return np.concatenate([self.data.geom_xpos[self.meshes], self.data.geom_xmat[self.meshes]], axis=1)

    def _layer(self, camera: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        shown = self.context.vopt
        before = shown.geomgroup.copy(), shown.sitegroup.copy()
        shown.geomgroup[:] = np.arange(mujoco.mjNGROUP) == LAYER
        shown.sitegroup[:] = 0
        try:
            return self._drawn(camera, side)
        finally:
            shown.geomgroup[:], shown.sitegroup[:] = before

    def _drawn(self, camera: int, side: int, depth: bool = True) -> Any:  # [side, side, 3] uint8; also [side, side]
        self.context.render(side, side, camera_id=camera)
        return self.context.read_pixels(side, side, depth=depth)
