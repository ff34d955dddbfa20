"""Made-up studies whose trainings follow a law, so that it is known what each is worth."""

import math
import random

from gpt2_ablate.records import Record

STEPS = 400
FLOOR, SCALE, POWER = 3.0, 20.0, 0.4  # of the part that follows the sum of the learning rates
FALL = 0.3  # nats that the fall of the rate brings


def rate(step, steps, constant=False):
    """Linear warm-up over a tenth, then half a cosine to zero."""
    warm = steps / 10
    if step < warm or constant:
        return min(1.0, step / warm)
    return (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


def losses(steps, every=20, constant=False):
    """[(share of the training, loss)]: a power law of what the rates sum up to, and what their fall brings as it goes on.

    It is not the law that a report fits, which has a logarithm and forgets."""
    total, fallen, found = 0.0, 0.0, []
    for step in range(1, steps + 1):
        now = rate(step, steps, constant)
        total += now
        fallen += 0.0 if step < steps / 10 else 1 - now
        if step % (steps // every) == 0:
            found.append((step / steps, FLOOR + SCALE * total**-POWER - FALL * fallen / STEPS))
    return found


def study(worth, costs=None, speeds=None, noise=0.005, seeds=(0, 1, 2), draw=0, constant=False, **metrics):
    """Records of a baseline and of variants, each of which is worth a baseline that is trained so many times as long.

    Args:
        worth: variant -> multiple of the baseline's tokens.
        costs, speeds: of a token, and tokens/s, as multiples of the baseline's.
        noise: of a run as a whole, and half of it of each validation.
    """
    random_, runs = random.Random(draw), []
    for seed in seeds:
        for name, multiple in {"baseline": 1.0, **worth}.items():
            shift = random_.gauss(0, noise)
            curve = [
                [share * STEPS, loss + shift + random_.gauss(0, noise / 2)]
                for share, loss in losses(round(STEPS * multiple), constant=constant)
            ]
            speed = (speeds or {}).get(name, 1.0)
            runs.append(Record.model_validate({
                "variant": name, "seed": seed, "preset": "made-up", "status": "finished",
                "config": {
                    "model": {"config": {"block_size": 32}}, "data": {"batch_size": 2}, "trainer": {"max_steps": STEPS},
                },
                "metrics": {
                    "validation_loss": curve[-1][1], "training_flops_per_token": 1e6 * (costs or {}).get(name, 1.0),
                    "training_tokens_per_second": 1000.0 * speed, "training_speed_ratio": speed,
                    "training_speed_ratio_low": 0.99 * speed, "training_speed_ratio_high": 1.01 * speed, **metrics,
                },
                "curves": {
                    "validation": curve,
                    "learning_rate": [[step, 1e-3 * rate(step, STEPS, constant)] for step in range(10, STEPS + 1, 10)],
                },
            }))  # fmt: skip
    return runs
