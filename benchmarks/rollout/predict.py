"""What `libero-base` should reach on a GPU, from its FLOPs and bytes alone. A prediction: nothing here is measured.

    python benchmarks/rollout/predict.py [--tflops 790] [--terabytes 4.3] [--share 0.4]

It counts the passes of the causal world model: matrix products, attention, and one read and write of everything
between them. It does not count policy, reflector, tokenizer and imperfect overlap. Ends in one JSON line.
"""

import argparse
import json
from dataclasses import asdict

import torch

from worldenv.records.progress import table
from worldenv.worlds.causal.cost import count
from worldenv.worlds.causal.network import LIBERO_BASE, CausalNetwork
from worldenv.worlds.causal.world import LEVELS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=790.0, help="matrix peak in bf16 (H200: large products)")
    parser.add_argument("--terabytes", type=float, default=4.3, help="memory bandwidth, TB/s (H200: copies)")
    parser.add_argument("--share", type=float, default=0.4, help="of the matrix peak that the passes reach")
    given = parser.parse_args()
    config = LIBERO_BASE
    with torch.device("meta"):
        network = CausalNetwork(config)
        slot = network.new_ring(1).bytes_each() + 3 * config.image_size**2
    parameters = sum(p.numel() for p in network.parameters())
    one, rows, figures = count(config, config.places), [], {}
    for steps in (1, len(LEVELS), 4):
        passes = steps + 1  # and one that writes what later chunks will see
        flops = passes * (one.matrix_flops + one.attention_flops) / config.chunk
        moved = passes * (one.activation_bytes + one.ring_bytes) / config.chunk
        by_flops, by_bytes = given.share * given.tflops * 1e12 / flops, given.terabytes * 1e12 / moved
        figures[steps] = {"frames_per_s": min(by_flops, by_bytes), "flops_a_frame": flops, "bytes_a_frame": moved}
        rows.append([str(steps), f"{flops / 1e9:,.0f}", f"{moved / 1e6:,.0f}", f"{by_flops:,.0f}", f"{by_bytes:,.0f}"])
    table(
        f"libero-base, {parameters / 1e6:.0f} M parameters, {slot / 1e6:.2f} MB a slot: predicted, not measured",
        [
            "denoising steps",
            "GFLOP a frame",
            "MB a frame",
            f"frames/s at {given.share:.0%} of the peak",
            "frames/s by bandwidth",
        ],
        rows,
    )
    print(
        json.dumps(
            {
                "measured": False,
                "parameters": parameters,
                "slot_bytes": slot,
                "a_pass": asdict(one),
                "by_steps": figures,
                **vars(given),
            }
        )
    )


if __name__ == "__main__":
    main()
