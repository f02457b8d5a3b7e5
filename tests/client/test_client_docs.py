"""The examples of docs/client.md run as they stand, on both backends."""

import re
import textwrap
from pathlib import Path

import pytest
from client_support import both_backends, run
from harness import Server

DOCUMENT = Path(__file__).parents[2] / "docs" / "client.md"
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


@both_backends
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(tmp_path, backend, number, capsys):
    with Server(tmp_path / "server") as server:
        code = EXAMPLES[number].replace("127.0.0.1:9292", server.address)
        space: dict = {}
        exec(f"async def example():\n{textwrap.indent(code, '    ')}", space)
        run(backend, space["example"])
    assert capsys.readouterr().out


def test_the_document_has_examples():
    assert len(EXAMPLES) == 3
