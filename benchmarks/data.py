"""How fast robot samples come from disk here, doing the work of Octo's pipeline.

  python benchmarks/data.py [--data ../shared/fixtures/bridge_dataset] [--workers 0,2] [--grain]
  python benchmarks/data.py --memory 200,2000 [--access contiguous]

A sample is two primary frames (Bridge's 64 px, Lanczos to 256), two of a wrist camera that Bridge
lacks (128 px of padding), a goal picture of each, proprio, a language instruction and chunks of 4
actions; the augmentation is octo/data's default: a random resized crop, brightness, contrast,
saturation and hue. Rates are those at which whole batches reach this process. The last line is one
JSON object:

    samples_per_s_equal_quality           decoded, resized and augmented for every sample
    samples_per_s_no_augmentation         the same without augmentation
    samples_per_s_cached                  from the resized cache, augmented
    samples_per_s_cached_no_augmentation  from the resized cache
    first_batch_s                         of ten data sets: opened, workers started, first batch
    rounds                                of each rate with 0, 2, … workers; the best is the rate
    rss_mb                                the process tree's largest, in all of these
    cpu_ms_per_sample                     of all processes: what a busy machine cannot slow down
    grain_*                               Grain's own mixture of the same sources (--grain), its
                                          rounds and ours in turns
    times_grain                           ours / Grain's, of each round; the median
    rss_mb_after                          batches -> the process tree's, --memory
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

import numpy as np
import psutil

from vla_jax import plugin
from vla_jax.codecs import text_tokenizer
from vla_jax.data import engine, mixture, order, runs
from vla_jax.data.sources import rlds
from vla_jax.embodiments import widowx
from vla_jax.types import SourceContext

FIXTURE = pathlib.Path(__file__).parents[2] / "shared" / "fixtures" / "bridge_dataset"
# octo/data/oxe and scripts/configs/octo_pretrain_config.py: frame_transform_kwargs
AUGMENT = dict(
    crop_scale=(0.8, 1.0),
    crop_ratio=(0.9, 1.1),
    brightness=0.1,
    contrast=0.1,
    saturation=0.1,
    hue=0.05,
)
OCTO = {"augmented": 162.0, "plain": 213.0}  # samples/s, measured on two such cores
STANDARDIZER = dict(type="oxe", row="bridge")
DATA_SETS = 10
ROUNDS = 3
WARM = 8  # batches of a round, after which every worker has begun


def main() -> int:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=str(FIXTURE), help="an RLDS folder of Bridge's columns")
    parser.add_argument(
        "--workers", default="0,2", help="processes, a,b,…: the best counts; 0 = two threads"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each of three rounds")
    parser.add_argument("--cache", help="where resized images lie; default: a temporary folder")
    parser.add_argument("--cache-format", default="raw", choices=("jpeg", "raw"))
    parser.add_argument("--grain", action="store_true", help="time Grain's own mixture, too")
    parser.add_argument("--only", help="only these rates, by name, a,b,…")
    parser.add_argument("--access", default="random", choices=runs.ACCESS)
    parser.add_argument("--memory", help="only this: batch counts after which RSS is read, a,b,…")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench(arguments, pathlib.Path(scratch))
            found = bench.memory() if arguments.memory else bench.rates()
    except plugin.UserError as error:
        print(f"benchmarks/data.py: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found))
    return 0


class Bench:
    """The measurements; `scratch` is a folder that may be filled."""

    def __init__(self, arguments: argparse.Namespace, scratch: pathlib.Path):
        self.arguments, self.scratch = arguments, scratch
        self.workers = [int(count) for count in str(arguments.workers).split(",")]
        table, _ = rlds.recorded(arguments.data, standardizer=STANDARDIZER)
        texts = list(table.language) * 4
        self.context = SourceContext(
            name="bridge",
            stream="robot",
            window=2,
            action_horizon=4,
            action_size=7,
            image_sizes={"primary": (256, 256), "wrist": (128, 128)},
            resize="tensorflow",
            max_tokens=64,
            text_tokenizer=text_tokenizer.TextTokenizer.train(texts),
            embodiments=(widowx.EMBODIMENT,),
            action_spaces=widowx.EMBODIMENT.action_spaces,
        )
        self.peak, self.cpu, self.rounds = 0.0, {}, {}

    def rates(self) -> dict:
        """All rates and the first batch's time; see the module."""
        load_before = round(os.getloadavg()[0], 2)
        cache = dict(
            path=self.arguments.cache or str(self.scratch / "cache"),
            format=self.arguments.cache_format,
        )
        rates = {
            "samples_per_s_equal_quality": dict(augment=AUGMENT),
            "samples_per_s_no_augmentation": {},
            "samples_per_s_cached": dict(augment=AUGMENT, cache=cache),
            "samples_per_s_cached_no_augmentation": dict(cache=cache),
        }
        only = (self.arguments.only or ",".join(rates)).split(",")
        for name in only:
            if name not in rates:
                raise plugin.UserError(plugin.unknown("--only", name, rates))
        rates = {name: rates[name] for name in only}
        mixtures = {name: self.mixture(**settings) for name, settings in rates.items()}
        found, compared = {}, {}
        for name, mix in mixtures.items():
            for w in self.workers:
                openers = {f"{name}/{w}": functools.partial(self.ours, mix, w)}
                if self.arguments.grain:
                    openers[f"grain_{name}/{w}"] = functools.partial(self.grain, mix, w)
                rounds = self.in_turns(openers)
                for way, values in rounds.items():
                    best = found.setdefault(way.rpartition("/")[0], values)
                    found[way.rpartition("/")[0]] = max(best, values, key=statistics.median)
                if self.arguments.grain:
                    ratios = [ours / theirs for ours, theirs in zip(*rounds.values())]
                    compared[f"{name}/{w}"] = round(statistics.median(ratios), 3)
        return {
            **{name: round(statistics.median(rounds), 1) for name, rounds in found.items()},
            **({} if self.arguments.only else {"first_batch_s": round(self.first_batch(), 2)}),
            "rss_mb": round(self.peak, 1),
            "rounds": self.rounds,
            **({"times_grain": compared} if compared else {}),
            "cpu_ms_per_sample": self.cpu,
            "times_octo": {
                name: round(statistics.median(rounds) / _octo(name), 2)
                for name, rounds in found.items()
            },
            "batch_size": self.arguments.batch_size,
            "cores": len(os.sched_getaffinity(0)),
            "load_before": load_before,
            "cache_format": self.arguments.cache_format,
        }

    def memory(self) -> dict:
        """RSS of the process tree, MB, after so many batches of an augmented mixture."""
        counts = sorted(int(count) for count in self.arguments.memory.split(","))
        after, done = {}, 0
        workers = self.workers[-1]
        with self.ours(self.mixture(augment=AUGMENT), workers) as stream:
            for count in counts:
                while done < count:
                    next(stream)
                    done += 1
                # The median of a few: shared memory of batches on their way comes and goes.
                after[count] = round(statistics.median(self._rss(stream) for _ in range(9)), 1)
        growth = after[counts[-1]] / after[counts[0]] - 1
        return {
            "rss_mb_after": after,
            "growth": round(growth, 4),
            "workers": workers,
            "access": self.arguments.access,
        }

    def first_batch(self) -> float:
        """Seconds to the first batch of ten data sets, none opened before."""
        members = {}
        for i in range(DATA_SETS):
            folder = self.scratch / f"data_{i}" / "1.0.0"
            source = pathlib.Path(self.arguments.data)
            source = source if (source / "features.json").is_file() else source / "1.0.0"
            shutil.copytree(source, folder, copy_function=shutil.copyfile)
            folder.chmod(0o755)
            members[f"data_{i}"] = dict(source=self.source(str(folder), augment=AUGMENT), weight=1)
        begin = time.perf_counter()
        made = mixture.Mixture.make(members, self.context)
        with self.ours(made, self.workers[-1]) as stream:
            next(stream)
            return time.perf_counter() - begin

    def source(self, path: str, **settings) -> dict:
        """The spec of one data set."""
        return dict(
            type="rlds",
            path=path,
            standardizer=STANDARDIZER,
            language="optional",
            optional_views=("wrist",),
            goals=dict(views=("primary", "wrist")),
            access=self.arguments.access,
            **settings,
        )

    def mixture(self, **settings) -> mixture.Mixture:
        """Two members over the same episodes, one of them of early steps, 3 to 1."""
        path = self.arguments.data
        return mixture.Mixture.make(
            {
                "all": dict(source=self.source(path, **settings), weight=3),
                "early": dict(source=self.source(path, steps="[:3]", **settings), weight=1),
            },
            self.context,
        )

    def ours(self, mix: mixture.Mixture, workers: int) -> engine.Stream:
        """The engine's stream of a mixture."""
        return engine.Stream(mix, self.arguments.batch_size, workers=workers)

    def grain(self, mix: mixture.Mixture, workers: int):
        """Grain's own stream of the same sources."""
        return _grain(mix, self.arguments.batch_size, workers)

    def in_turns(self, openers: dict) -> dict[str, list[float]]:
        """Name -> samples/s of each round. One stream is open at a time.

        Every other round begins with another, so that a machine that slows down favours none; and
        each round opens its own: what waits to be drawn from goes on reading ahead meanwhile.
        """
        rounds = {name: [] for name in openers}
        used, whole = dict.fromkeys(openers, 0.0), dict.fromkeys(openers, 0)
        for number in range(ROUNDS):
            for name in list(openers)[:: -1 if number % 2 else 1]:
                with openers[name]() as batches:
                    for _ in range(WARM):
                        next(batches)
                    begin, cpu, drawn = time.perf_counter(), _cpu(), 0
                    while time.perf_counter() - begin < self.arguments.seconds:
                        next(batches)
                        drawn += self.arguments.batch_size
                    rounds[name].append(drawn / (time.perf_counter() - begin))
                    used[name], whole[name] = used[name] + _cpu() - cpu, whole[name] + drawn
                    self._rss(batches)
        for name in openers:
            self.cpu[name] = round(1e3 * used[name] / whole[name], 3)
            self.rounds[name] = [round(r, 1) for r in rounds[name]]
        return rounds

    def _rss(self, stream) -> float:
        next(stream)
        tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
        used = sum(process.memory_info().rss for process in tree) / 2**20
        self.peak = max(self.peak, used)
        return used


class _Row:
    """A Grain transformation: index of a source -> its row, as our mixture makes it."""

    def __init__(self, source, name: str, seed: int):
        self.source, self.name, self.seed = source, name, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        row = self.source.sample(index, order.generator(self.seed, "robot", self.name, index))
        return {**row, "row_id": np.uint32(index)}


@contextlib.contextmanager
def _grain(mix: mixture.Mixture, size: int, workers: int):
    """Grain's own mixture of the same sources, with the same workers or threads, as an iterator."""
    import grain
    from grain import experimental

    engine.parse_absl_flags()
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    reading = dict(num_threads=1, prefetch_buffer_size=size)
    if not workers:
        reading = dict(num_threads=2, prefetch_buffer_size=2 * size)
    datasets = [
        grain.MapDataset.source(_Row(source, name, mix.seed)).shuffle(seed=mix.seed).repeat()
        for name, source in mix.sources.items()
    ]
    weights = [float(mix.weights[name]) for name in mix.sources]
    iterator = iter(
        experimental.ElasticIterator(
            grain.MapDataset.mix(datasets, weights),
            size,
            grain.sharding.ShardOptions(shard_index=0, shard_count=1),
            read_options=grain.ReadOptions(**reading),
            multiprocessing_options=processes if workers else None,
        )
    )
    try:
        yield iterator
    finally:
        iterator.close()


def _cpu() -> float:
    """Seconds of processor time that this process and its children have used."""
    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in tree)


def _octo(name: str) -> float:
    return OCTO["plain" if "no_augmentation" in name else "augmented"]


if __name__ == "__main__":
    sys.exit(main())
