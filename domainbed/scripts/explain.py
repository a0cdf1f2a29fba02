"""Show how a trained model answers single images: cards as PNG files and a page.

A card has the image, the class probabilities of the other run (or of zero-shot CLIP),
of LFA's last layers alone and of the run, and how much the run listens to each layer,
where its method has weights over layers.
"""

import argparse

from domainbed.lib.errors import InputError, check_at_least, exits_on_input_error
from domainbed.lib.misc import write_whole
from domainbed.lib.optional import require
from domainbed.lib.paths import as_path, user_path
from domainbed.lib.progress import add_quiet, silenced


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="explain",
        usage="python -m domainbed.scripts.explain --run out --disagreements 8",
        description=__doc__,
    )
    add = parser.add_argument
    add("--run", type=as_path, required=True, help="the folder of a finished run")
    add("--versus", type=as_path, help="that of another, to compare it with")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--image", type=as_path, nargs="+", help="pictures to show")
    images.add_argument(
        "--disagreements",
        type=int,
        metavar="N",
        help="show the N test images on which the runs differ with most confidence; "
        "without --versus, on which LFA and its last layer do",
    )
    add(
        "--data_dir",
        type=user_path,
        help="where the dataset is now; default: where it was trained",
    )
    add("--output_dir", type=as_path, help="default: explain in the run's folder")
    add_quiet(parser)
    args = parser.parse_args(argv)
    args.output_dir = args.output_dir or args.run / "explain"
    return args


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_at_least(args, disagreements=1)
    for module in ("jinja2", "matplotlib"):
        require(module, "report")
    with silenced(args.quiet):
        make_cards(args)


def make_cards(args: argparse.Namespace) -> None:
    """Write a PNG file of each image's card, and a page with all of them."""
    from domainbed.explain import cards, figures  # they import what may be missing
    from domainbed.report.parts import plural

    run, versus = cards.load_models(args.run, args.versus, args.data_dir)
    columns = cards.make_columns(run, versus)
    facts = ""
    if args.image:
        drawn = [cards.card_of_file(path, columns) for path in args.image]
    else:
        pair = (columns[0], columns[-1]) if versus else columns[-2:]
        answers = cards.compare(*pair)
        facts = cards.summary(answers, *(column.title for column in pair))
        print(facts)
        rows = cards.most_confident(answers, args.disagreements)
        items = zip(rows["env"], rows["index"], strict=True)
        drawn = [cards.card_of_item(*item, columns) for item in items]
    if not drawn:
        return
    if layers := cards.layers_in_words(drawn, run.name):
        facts = f"{facts} {layers}".strip()
        print(layers)
    title = f"{run.name} on {run.args['dataset']}, image by image"
    files = {
        figures.file_name(number, card): figures.as_png(card)
        for number, card in enumerate(drawn, 1)
    }
    files["explain.html"] = figures.as_page(drawn, title, facts)
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(args.output_dir / name, content)
    except OSError as error:
        raise InputError(f"cannot write to {args.output_dir}: {error}.") from None
    print(f"wrote {plural(len(drawn), 'card')} and explain.html to {args.output_dir}")


if __name__ == "__main__":
    main()
