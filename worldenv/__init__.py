"""Improve a vision-language-action policy by reinforcement learning inside a learned video world model.

The whole public interface: a program needs `import worldenv` and nothing else of this package.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Name -> its module. Imported when first used, so that `import worldenv` is quick and needs no extra.
_PUBLIC = {
    "load": "assemble",
    "load_run": "job",
    "make_engine": "assemble",
    "make_env": "assemble",
    "Parts": "assemble",
    "TrainConfig": "config",
    "EvaluateConfig": "config",
    "train": "job",
    "evaluate": "job",
    "Engine": "rollout.engine",
    "EngineConfig": "rollout.engine",
    "Rollouts": "rollout.episodes",
    "WorldModelEnv": "envs.world_model_env",
    "EnvConfig": "envs.world_model_env",
    "WorldModelVectorEnv": "envs.gymnasium_env",
    "TorchRLWorldModelEnv": "envs.torchrl_env",
    "PostTrainConfig": "rl.config",
    "Learner": "rl.learner",
    "group_advantage": "rl.advantage",
    "leave_one_out": "rl.advantage",
    "EvalConfig": "evaluation.config",
    "practice_starts": "evaluation.measure",
    "act_in_true": "evaluation.truth",
    "steps_to_success": "evaluation.truth",
    "replay": "rollout.replay",
    "keep_freed_memory": "rollout.memory",
    "Observation": "interfaces.observation",
    "Starts": "interfaces.observation",
    "Key": "interfaces.observation",
    "table_of": "interfaces.observation",
    "Slots": "interfaces.slots",
    "Decision": "interfaces.policy",
    "Policy": "interfaces.policy",
    "Imagined": "interfaces.world",
    "WorldModel": "interfaces.world",
    "Reflector": "interfaces.reflector",
    "Suite": "interfaces.suite",
    "Task": "interfaces.suite",
    "Things": "interfaces.suite",
    "LiberoSuite": "suites.libero.suite",
    "MetaWorldSuite": "suites.metaworld.suite",
    "Robot": "robot.robot",
    "Kinematics": "robot.kinematics",
    "FittedKinematics": "robot.fitted",
    "fit_kinematics": "robot.fit",
    "chunk_errors": "robot.fit",
    "ActionBounds": "robot.bounds",
    "Camera": "robot.camera",
    "LaplacePolicy": "policy.laplace",
    "load_openvla_oft": "policy.openvla_oft.policy",
    "OpenVLAConfig": "policy.openvla_oft.config",
    "OpenVLAConventions": "policy.openvla_oft.config",
    "load_pi0": "policy.flow.policy",
    "load_smolvla": "policy.flow.policy",
    "Pi0Config": "policy.flow.config",
    "SmolVLAConfig": "policy.flow.config",
    "FlowConventions": "policy.flow.config",
    "load_wan": "worlds.wan.world",
    "load_causal_latents": "worlds.causal.latents",
    "save_causal_latents": "worlds.causal.latents",
    "LatentCausalNetwork": "worlds.causal.latents",
    "CausalConfig": "worlds.causal.network",
    "causal_loss": "training.train_causal",
    "distillation_loss": "training.train_causal",
    "load_video": "worlds.video.world",
    "VideoConfig": "worlds.video.network",
    "Conditioning": "worlds.conditioning",
    "FrameEncoder": "worlds.conditioning",
    "FrameTokenizer": "worlds.tokenizers",
    "video_loss": "training.train_video",
    "load_rlinf_reflector": "reflector.rlinf_resnet",
    "RlinfConfig": "data.formats.rlinf",
    "rlinf_starts": "data.formats.rlinf",
    "fit_scale": "training.fit_scale",
    "Clips": "data.clips",
    "VlmConfig": "reflector.transformers_vlm",
    "VlmTraining": "training.train_vlm",
    "train_vlm": "training.train_vlm",
    "Schedule": "training.fit",
    "Trajectory": "data.trajectory",
    "Demonstration": "data.demonstration",
    "TrajectoryReader": "data.trajectories",
    "TrajectoryWriter": "data.trajectories",
    "LeRobotReader": "data.formats.lerobot.reader",
    "LeRobotTables": "data.formats.lerobot.reader",
    "write_lerobot": "data.formats.lerobot.writer",
    "write_libero": "data.formats.libero",
    "agreement": "data.orientation",
    "Piece": "interfaces.pieces",
    "export_onnx": "export",
    "UserError": "errors",
    "philox": "ops.philox",
    "Use": "ops.philox",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'worldenv' has no attribute {name!r}")
    return getattr(import_module(f"worldenv.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(["__version__", *_PUBLIC])
