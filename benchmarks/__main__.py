"""`python -m benchmarks [claim ...] [--quick] [--only TEXT] [--out DIR] [--draw]`."""

import argparse
import importlib
import json
import pathlib
import pkgutil
import sys
import tempfile

from . import harness, report


HERE = pathlib.Path(__file__).parent


def main() -> int:
    every = [module.name for module in pkgutil.iter_modules([str(HERE)])]
    public = {name for name in every if not name.startswith("_")}
    claims = sorted(public - {"harness", "report"})
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("claim", nargs="*", help=f"of: {', '.join(claims)}; or all")
    parser.add_argument("--quick", action="store_true", help="small sizes, for CI")
    parser.add_argument("--out", help="folder for the results (default: results/)")
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="the cases of one claim that have it in their names, if the claim can; "
        "the others stay as they are in the results",
    )
    parser.add_argument(
        "--draw",
        action="store_true",
        help="measures nothing: the figures anew, from the results that are there",
    )
    arguments = parser.parse_args()
    if arguments.only and len(arguments.claim) != 1:
        parser.error("--only goes with one claim")
    if unknown := set(arguments.claim) - set(claims):
        parser.error(f"no such claim: {', '.join(sorted(unknown))}")

    if arguments.out is not None:
        out = pathlib.Path(arguments.out)
    elif arguments.quick:  # not over the results that are kept
        out = pathlib.Path(tempfile.mkdtemp(prefix="benchmarks-"))
    else:
        out = HERE / "results"

    if arguments.draw:
        for claim in arguments.claim or claims:
            module = importlib.import_module(f"benchmarks.{claim}")
            result = json.loads((out / f"{claim}.json").read_text(encoding="utf-8"))
            if "sides" in result["cases"][0]:  # counts have a figure of their own
                report.draw(result, out, getattr(module, "PICTURES", {}))
        return 0

    wrong = []
    for claim in arguments.claim or claims:
        module = importlib.import_module(f"benchmarks.{claim}")
        if hasattr(module, "run"):  # counts, where there is nothing to time
            wrong += module.run(quick=arguments.quick, out=out)
        else:
            wrong += harness.run(
                module, quick=arguments.quick, out=out, only=arguments.only
            )
    print(f"\nResults are in {out}")
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
