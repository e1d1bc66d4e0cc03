"""How fast one core draws the rendered world: clips a second at two sizes, as JSON.

    python experiments/benchmarks/rendering.py [--clips 60]

The median of five rounds, in processor time, so that other work on the machine disturbs it little.
"""

import argparse
import json
import statistics
import time

from mien.data_pipelines.synthetic import WorldConfig, clip, identity, render


def clips_a_second(config: WorldConfig, clips: int, rounds: int = 5) -> float:
    """Rendered clips for each second of processor time, drawing nothing twice."""
    rates = []
    for turn in range(rounds):
        begun = time.process_time()
        for number in range(turn * clips + 1, (turn + 1) * clips + 1):
            it = clip(config, number)
            render(config, identity(config, it.subject), it.expression, it.gaze, it.seed)
        rates.append(clips / (time.process_time() - begun))
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=60, help="clips a round (default: %(default)s)")
    clips = parser.parse_args().clips
    figures = {
        f"{frames}x{size}x{size}": round(clips_a_second(WorldConfig(frames=frames, size=size), clips), 1)
        for frames, size in ((16, 160), (8, 64))
    }
    print(json.dumps({"clips_per_second_one_core": figures}))


if __name__ == "__main__":
    main()
