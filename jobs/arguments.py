"""Arguments that several verbs take."""

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Dotted config overrides such as train.steps=200.", show_default=False
    ),
]
