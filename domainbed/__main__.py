"""`python -m domainbed`: the commands, each with a line that says what it does."""

import ast
from pathlib import Path

from domainbed.lib.errors import exits_on_input_error

FIRST = """\
First results, without any download:

    python -m domainbed.scripts.sweep launch @quickstart --output_dir sweep \\
        --data_dir data --command_launcher pool
    python -m domainbed.scripts.collect_results --input_dir sweep

Each command says with --help what it takes:
"""


def commands() -> dict[str, str]:
    """Every script's name and the first line of its description, read, not imported."""
    found = {}
    for path in sorted((Path(__file__).parent / "scripts").glob("[!_]*.py")):
        description = ast.get_docstring(ast.parse(path.read_text()))
        found[path.stem] = description.splitlines()[0]
    return found


@exits_on_input_error
def main() -> None:
    print(FIRST)
    listed = commands()
    width = max(map(len, listed))
    for name, line in listed.items():
        print(f"  python -m domainbed.scripts.{name:{width}}  {line}")


if __name__ == "__main__":
    main()
