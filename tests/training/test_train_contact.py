"""The contact network learns, from small sets, and from mirrors that show exactly what would happen in them."""

import math

import pytest
import torch

from worldenv.robot.camera import Camera
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.suites.tabletop.physics import Tabletop
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.training import train_contact
from worldenv.training.contacts import HIDDEN_LEVELS, PICTURE_LEVELS, UNKNOWN, Contacts
from worldenv.training.train_contact import axis_across, contact_loss
from worldenv.worlds.composer.contact import COLOURS, ContactNetwork, Scene, Touch, channels, look, numbers
from worldenv.worlds.composer.layer import SIZE, Layer, Thing, project, window

K, M = 4, 96


@pytest.fixture
def contacts():
    """A thing lies near or far: where it is near, it is grasped and comes along."""
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(-20, 20, (M, channels(K), SIZE, SIZE), generator=draw, dtype=torch.int8)
    mask, near = torch.zeros(M, SIZE, SIZE, dtype=torch.uint8), torch.rand(M, generator=draw) < 0.5
    for i in range(M):
        row = 20 if near[i] else 6
        mask[i, row : row + 6, 12:20] = 255
    pictures[:, :3] += (mask > 0)[:, None] * torch.tensor(70, dtype=torch.int8)
    rest = torch.linspace(0.01, 0.04, K)[None, :, None] * torch.tensor((1.0, 0, 0)) * near[:, None, None]
    closes = torch.ones(M, K, dtype=torch.bool)
    hidden = torch.zeros(M, K, SIZE, SIZE, dtype=torch.uint8)
    hidden[:, 2:] = (mask > 0)[:, None] * HIDDEN_LEVELS  # after the third step
    hidden[(mask == 0)[:, None].expand_as(hidden)] = UNKNOWN
    hidden[~near] = UNKNOWN
    grasps = near[:, None].expand(M, K)
    pushed = torch.tensor((0.0, 0.02, 0)) * near[:, None]  # another thing, below the first
    other = near, pushed, mask.roll(6, 1)
    stop = torch.where(near, 0.03, 0.0)  # near the thing the gripper is stopped; elsewhere it comes as low as planned
    return Contacts(
        pictures,
        torch.zeros(M, numbers(K)),
        near,
        closes,
        grasps,
        rest,
        mask,
        hidden,
        *other,
        stop,
        near,
        torch.where(near, 0.4, -1.0),
    )


def learn(network, contacts, steps):
    loss, optimizer = contact_loss(network, contacts, 32), torch.optim.Adam(network.parameters(), 1e-3)
    found = []
    for step in range(steps):
        value, parts = loss(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append((value.item(), parts))
    return found


def test_it_learns_what_moves_what_is_grasped_and_which_pixels_are_the_things(contacts):
    torch.manual_seed(0)
    network = ContactNetwork(K, stops=True, held_open=True)
    found = learn(network, contacts, 100)
    assert found[-1][0] < 0.5 * found[0][0]
    said = network(contacts.pictures.float() / PICTURE_LEVELS, contacts.numbers)
    assert ((said.moves > 0) == contacts.moves).float().mean() > 0.95
    assert ((said.grasps > 0) == contacts.grasps).float().mean() > 0.95
    inside = (said.mask > 0) & contacts.moves[:, None, None]
    assert (inside == ((contacts.mask > 0) & contacts.moves[:, None, None])).float().mean() > 0.97
    right, known = (said.hidden > 0) == (contacts.hidden == HIDDEN_LEVELS), contacts.hidden != UNKNOWN
    assert right[known].float().mean() > 0.97
    assert ((said.pushes > 0) == contacts.pushes).float().mean() > 0.95
    apart = (said.pushed - contacts.pushed).norm(dim=1)[contacts.pushes]
    inside = (said.pushed_mask > 0) == (contacts.pushed_mask > 0)
    assert apart.mean() < 0.01 and inside[contacts.pushes].float().mean() > 0.97
    assert (said.stop[contacts.is_stopped] - 0.03).abs().mean() < 0.005 and said.stop[~contacts.is_stopped].max() < 0
    assert (said.opening[near := contacts.moves] - 0.4).abs().mean() < 0.05 and near.any()


def alone(part, contacts):
    """The loss of a part by itself, without the others' weights."""
    return contact_loss(ContactNetwork(K), contacts, 32)(torch.Generator().manual_seed(0))[1][part]


def test_what_is_decided_already_or_does_not_move_counts_for_nothing(contacts):
    still = contacts[torch.nonzero(~contacts.moves)[:, 0]]
    for part in ("mask", "hidden", "rest_cm", "pushed_cm", "pushed_mask"):
        assert alone(part, still) == 0, part
    assert alone("moves", still) > 0 and alone("pushes", still) > 0
    still.closes.zero_()
    assert alone("grasps", still) == 0 and alone("grasps", contacts) > 0
    still.hidden.zero_()  # something was moved before
    assert alone("hidden", still) > 0
    contacts.hidden.fill_(UNKNOWN)
    assert alone("hidden", contacts) == 0


def test_pixels_of_the_thing_alone_count_for_what_is_hidden_so_that_few_do_not_drown_in_many(contacts):
    network = ContactNetwork(K)
    torch.nn.init.zeros_(network.masks.weight)
    torch.nn.init.zeros_(network.masks.bias)
    _, parts = contact_loss(network, contacts, 32)(torch.Generator().manual_seed(0))
    contacts.hidden[:, :, :20] = UNKNOWN  # of the thing that lies near, hardly anything
    _, fewer = contact_loss(network, contacts, 32)(torch.Generator().manual_seed(0))
    assert parts["hidden"] == pytest.approx(math.log(2)) == fewer["hidden"]


def mirrored(poses):
    return poses * torch.tensor([-1.0, 1, 1, 1, -1, -1, 1])


def test_in_a_mirror_true_frames_and_poses_give_the_mirrored_view():
    env = Tabletop(64)
    env.reset(TASKS, range(10), "train")
    frame, poses = torch.from_numpy(env.frames()), torch.from_numpy(env.proprio())[:, None].repeat(1, K + 1, 1)
    draw = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.06, 0.06, 0.06, 0.4, 0.4, 0.4, 0.5])
    poses = (poses + spread * (2 * torch.rand(poses.shape, generator=draw) - 1)).clamp(-1, 1)
    camera = torch.from_numpy(env.camera.projection).expand(10, 3, 4)
    moved = torch.tensor([0.03, -0.02, 0.0])
    mask = torch.randint(256, (10, 64, 64), generator=draw, dtype=torch.uint8)
    clear, origin = frame.roll(1, 0), poses[:, 1, :3]
    held = torch.arange(10) % 2 == 0
    robot = moved_gripper(Kinematics())
    plate = frame[0].float() / 127.5 - 1
    side = torch.tensor([-1.0, 1, 1])
    thing, other = Thing(mask, origin, origin + moved), Thing(mask.roll(9, 1), origin, origin - moved)
    view = look(Layer(clear, thing, other, held, held.float()), frame, poses, camera, Scene(plate, robot))
    thing, other = (Thing(one.mask.flip(2), one.origin * side, one.place * side) for one in (thing, other))
    layer = Layer(clear.flip(2), thing, other, held, held.float())
    other = look(layer, frame.flip(2), mirrored(poses), camera, Scene(plate.flip(1), robot))
    torch.testing.assert_close(other.pictures, view.pictures.flip(3), rtol=0, atol=2e-3)
    assert (other.pictures - view.pictures).abs().max() > 0.5  # and not the same
    torch.testing.assert_close(other.numbers, view.numbers * train_contact._mirror(K), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.centre, view.centre * side)


def test_the_suites_camera_is_its_own_mirror():
    env = Tabletop(64)
    camera = torch.from_numpy(env.camera.projection)[None]
    point = torch.tensor([[0.07, 0.03, 0.05]])
    (place, depth), (other, same) = project(point, camera), project(point * torch.tensor([-1.0, 1, 1]), camera)
    torch.testing.assert_close(other, torch.stack([64 - place[:, 0], place[:, 1]], dim=1))
    torch.testing.assert_close(depth, same)
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    seen = window(picture, camera, point)
    torch.testing.assert_close(
        window(picture.flip(2), camera, point * torch.tensor([-1.0, 1, 1])), seen.flip(3), rtol=0, atol=1e-3
    )


class Knows(ContactNetwork):
    """It says that the thing is where the view is bright, and that it goes to that side."""

    def __init__(self):
        super().__init__(K)
        self.plans = []

    def forward(self, pictures, plan):
        bright = pictures[:, 0] > 0.5
        side = bright.float().mean((1, 2), keepdim=True) * torch.where(bright[:, :1, -1:], 1.0, -1.0)  # +-0.5
        self.plans.append((side[0].item() < 0, plan[0]))
        rest = side * torch.tensor((0.06, 0, 0)) + torch.zeros(len(plan), K, 3)
        sure = torch.full((len(plan), K), 20.0)
        mask = 20 * (2 * bright.float() - 1)
        hidden = mask[:, None].expand(-1, K, -1, -1)
        return Touch(sure[:, 0], sure, rest, mask, hidden, sure[:, 0], rest[:, 0] / 3, -mask)


def test_half_of_the_batches_are_mirrored_and_plans_and_labels_with_them(contacts):
    contacts.pictures.zero_()
    contacts.mask.zero_()
    contacts.pictures[:, :COLOURS, :, SIZE // 2 :], contacts.mask[:, :, SIZE // 2 :] = 100, 255  # it is on the right
    contacts.hidden = (contacts.mask > 0)[:, None].expand(-1, K, -1, -1) * torch.tensor(HIDDEN_LEVELS)
    contacts.numbers.fill_(1.0)
    contacts.moves, contacts.grasps = torch.ones(M, dtype=torch.bool), torch.ones(M, K, dtype=torch.bool)
    contacts.rest = torch.tensor((0.03, 0, 0)).expand(M, K, 3)
    contacts.pushes, contacts.pushed, contacts.pushed_mask = (
        contacts.moves,
        contacts.rest[:, 0] / 3,
        255 - contacts.mask,
    )
    network = Knows()
    loss = contact_loss(network, contacts, 16)
    for seed in range(40):
        _, parts = loss(torch.Generator().manual_seed(seed))
        assert max(parts.values()) < 1e-4, (seed, parts)
    assert 10 < sum(is_mirrored for is_mirrored, _ in network.plans) < 30
    mirror = train_contact._mirror(K)
    for is_mirrored, plan in network.plans:
        assert torch.equal(plan, mirror if is_mirrored else torch.ones_like(mirror))


def test_a_mirrored_picture_changes_the_sign_of_the_axis_along_its_rows():
    def camera(eye, target):
        return torch.from_numpy(Camera.look_at(eye=eye, target=target, fov_deg=40.0, size=32).projection)[None]

    ahead, aside = camera((0.0, -0.3, 0.5), (0.0, 0.1, 0.0)), camera((0.6, 0.0, 0.5), (0.1, 0.0, 0.0))
    corner, beside = camera((0.5, -0.5, 0.5), (0.0, 0.0, 0.0)), camera((0.2, -0.3, 0.5), (0.2, 0.1, 0.0))
    found = [axis_across(one) for one in (ahead, aside, corner, beside, torch.cat([ahead, aside]))]
    assert found == [0, 1, None, None, None]
    point = torch.tensor([[0.05, 0.07, 0.03]])
    (place, depth), (other, same) = (project(point * torch.tensor(sign), aside) for sign in ((1.0, 1, 1), (1.0, -1, 1)))
    torch.testing.assert_close(other, torch.stack([32 - place[:, 0], place[:, 1]], dim=1))
    torch.testing.assert_close(depth, same)


def test_without_such_an_axis_no_batch_is_mirrored(contacts, monkeypatch):
    torch.manual_seed(0)
    network = ContactNetwork(K)
    losses = [contact_loss(network, contacts, 8, across=across) for across in (0, None)]
    apart = []
    for seed in range(8):
        one, other = (loss(torch.Generator().manual_seed(seed))[0].item() for loss in losses)
        apart.append(one != other)
    assert 0 < sum(apart) < 8  # the batches that the first loss mirrored
