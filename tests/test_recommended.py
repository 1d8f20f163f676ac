"""The list of recommended models, its command and its page, which is written anew by
python -m tests.test_recommended
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import mdformat
import pytest
import typer.main
from typer.testing import CliRunner

from pgrerank.cli import app
from pgrerank.models.options import Options
from pgrerank.models.recommended import LANGUAGES, recommended
from pgrerank.models.spec import LOADERS, ModelSpec

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "models.md"
_GENERATED = re.compile(r"(?<=<!-- models -->\n).*?(?=<!-- end of models -->)", re.DOTALL)


def page() -> str:
    text = ""
    titles = {
        "embedding": "Embedding",
        "late_interaction": "Late interaction",
        "cross_encoder": "Cross-encoders",
    }
    for kind, title in titles.items():
        text += f"\n## {title}\n\n| name | source | parameters | licence | reads | window |"
        text += " prompt | run here |\n" + "| -- " * 8 + "|\n"
        for one in recommended(kind):
            decoder = ", a decoder" if one.is_decoder else ""
            text += (
                f"| {one.name} | `{one.source}` | {one.parameters}{decoder} | {one.licence} |"
                f" {', '.join(one.languages)} | {one.window} | {one.prompt} |"
                f" {'yes' if one.was_run else 'no'} |\n"
            )
        lines = "\n".join(one.command for one in recommended(kind))
        text += f"\n<!-- not run: fetches the models from a hub -->\n\n```sh\n{lines}\n```\n"
    whole = _GENERATED.sub(lambda _: text + "\n", PAGE.read_text("utf-8"))
    options = {"wrap": 100, "plugin": {"tables": {"compact_tables": True}}}
    return mdformat.text(whole, options=options, extensions={"gfm", "tables"})


def test_the_page_is_what_the_list_says():
    assert PAGE.read_text("utf-8") == page(), "renew it: python -m tests.test_recommended"


@pytest.mark.parametrize("model", recommended(), ids=lambda model: model.name)
def test_each_can_be_registered_as_it_says(model):
    command = typer.main.get_command(app)
    context = command.make_context("pgrerank", shlex.split(model.command)[1:3])
    add = command.get_command(context, "models").get_command(context, "add")
    given = add.make_context("add", shlex.split(model.command)[3:]).params
    assert (given["name"], given["kind"], given["source"]) == (model.name, model.kind, model.source)
    loader = given["loader"] or LOADERS[model.kind][0]
    assert loader in LOADERS[model.kind]
    spec = ModelSpec(model.name, model.kind, loader, model.source, None, given["options"] or {})
    Options(spec, frozenset({"max_tokens", "prompts"}))  # refuses others
    assert set(model.languages) <= set(LANGUAGES)


def test_there_is_one_of_each_kind_and_for_chinese_and_code_of_those_that_are_there():
    for kind in LOADERS.keys() - {"listwise"}:  # any chat endpoint is one
        assert recommended(kind, "en")
    for kind in ("embedding", "cross_encoder"):
        for language in LANGUAGES:
            assert recommended(kind, language), (kind, language)
    assert len({model.name for model in recommended()}) == len(recommended())


def test_the_command_prints_them():
    shown = CliRunner().invoke(
        app, ["models", "recommend", "--kind", "cross_encoder", "--language", "zh", "--json"]
    )
    names = [row["name"] for row in json.loads(shown.stdout)]
    assert names == [model.name for model in recommended("cross_encoder", "zh")]
    assert "qwen3-reranker" in names
    assert "ms-marco" not in names
    table = CliRunner().invoke(app, ["models", "recommend", "--kind", "embedding"])
    assert "pgrerank models add bge-m3 --kind embedding --source BAAI/bge-m3" in table.stdout


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
