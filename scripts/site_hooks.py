"""What mkdocs does for Shoal's site besides reading docs/ (mkdocs.yml names this file).

- Pages that lie elsewhere in the repository, or follow from the code: the READMEs of the folders,
  SECURITY.md, the commands as typer has them, the gRPC services as the .proto files describe them.
- Links between them, which are right in the repository, become right in the site; a link to a
  source file becomes its name.
- Mathematics becomes MathML, which browsers draw by themselves.
"""

import html
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
FOLDERS = ("compression", "gossip", "consensus", "training", "node", "proto")
# Pages of the site, and where they lie in the repository if not in docs/.
ELSEWHERE = {
    "security.md": "SECURITY.md",
    "architecture.md": "ARCHITECTURE.md",
    "changelog.md": "CHANGELOG.md",
    **{f"parts/{folder}.md": f"{folder}/README.md" for folder in FOLDERS},
}
PAGE_OF = {
    **{origin: page for page, origin in ELSEWHERE.items()},
    "README.md": "index.md",
}
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]`]|`[^`]*`)+)\]\(([^)\s]+)\)")
_MATHS = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the decisions into the navigation, and leave out pages that are not there."""
    docs = Path(config.docs_dir)
    made = {*ELSEWHERE, "reference/commands.md", "reference/grpc.md"}

    def kept(entries: list[Any]) -> Iterator[Any]:
        for entry in entries:
            ((title, target),) = entry.items()
            if target == "adr/":
                yield {title: sorted(f"adr/{path.name}" for path in (docs / "adr").glob("*.md"))}
            elif isinstance(target, list):
                yield {title: [*kept(target)]}
            elif target in made or (docs / target).exists():
                yield entry

    config.nav = [*kept(config.nav or [])]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for page, origin in ELSEWHERE.items():
        text = (ROOT / origin).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    files.append(File.generated(config, "reference/grpc.md", content=grpc_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the repository's links into the site's."""
    here = page.file.src_uri
    origin = ELSEWHERE.get(here, f"docs/{here}")

    def turned(link: re.Match[str]) -> str:
        text, target = link.groups()
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        path, _, anchor = target.partition("#")
        wanted = os.path.normpath(os.path.join(os.path.dirname(origin), path))
        found = PAGE_OF.get(wanted, wanted.removeprefix("docs/"))
        if files.get_file_from_path(found) is None:
            is_name = re.fullmatch(r"[\w./*-]+", text) and "/" in text
            if not (ROOT / wanted).exists():
                return link[0]
            return f"`{text}`" if is_name else text
        there = os.path.relpath(found, os.path.dirname(here) or ".")
        return f"[{text}]({there}{'#' + anchor if anchor else ''})"

    # griffe does not follow the links in src/shoal, so it is told of the folders themselves.
    named = r"::: \1\n    options:\n      heading: shoal.\1\n      toc_label: \2"
    markdown = re.sub(r"^::: shoal\.([\w.]+\.(\w+))$", named, markdown, flags=re.MULTILINE)
    return _LINK.sub(turned, markdown)


def on_page_content(html_text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw the mathematics."""
    from latex2mathml.converter import convert

    def drawn(maths: re.Match[str]) -> str:
        display = "block" if maths["tag"] == "div" else "inline"
        return str(convert(html.unescape(maths["tex"]).strip(), display=display))

    return _MATHS.sub(drawn, html_text)


def on_post_build(config: MkDocsConfig) -> None:
    """Take what the theme's script would load from elsewhere out of it: search, where a page is
    opened as a file. Search works where the site is served (python -m http.server -d site)."""
    for script in Path(config.site_dir).rglob("assets/javascripts/*.js"):
        text = script.read_text(encoding="utf-8")
        local = re.sub(r"https://unpkg\.com/[\w@./-]+", "data:text/javascript,", text)
        if local != text:
            script.write_text(local, encoding="utf-8")


def commands_page() -> str:
    """Every command with its arguments and options, as `--help` shows them."""
    import typer
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from shoal.node.cli import app

    command = get_command(app)
    context = typer.Context(command)
    text = get_docs_for_click(obj=command, ctx=context, name="shoal", title="Commands")
    # What each is for stands below; here the lines would be cut short.
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* `[^\n]*\n)+", "", text)
    text = re.sub(r"```console\n\$ ", "```text\n", text)
    return re.sub(r"^Example: (.+)$", r"Example: `\1`", text, flags=re.MULTILINE)


def grpc_page() -> str:
    """Services and messages of proto/, with the comments there."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from grpc_tools import protoc

    names = sorted(path.name for path in (ROOT / "proto").glob("*.proto"))
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "set"
        words = [f"-I{ROOT / 'proto'}", f"--descriptor_set_out={out}", "--include_source_info"]
        assert protoc.main(["protoc", *words, *names]) == 0, "the .proto files do not compile"
        described = FileDescriptorSet.FromString(out.read_bytes())
    lines = [
        "# gRPC",
        "",
        "`Inspect` answers people and programs of the node's own machine, in the clear on loopback",
        "(port 7600), with reflection and the standard health service. `Text` is what",
        "`shoal serve --grpc` offers. `Mesh` and `Look` are what",
        "members say to each other over mutual TLS; [the wire](../parts/proto.md) has the limits.",
    ]
    for file in described.file:
        lines += ["", f"## {file.name}", *_services(file), *_messages(file)]
    return "\n".join(lines) + "\n"


def _comments(file: Any) -> dict[tuple[int, ...], str]:
    return {
        tuple(place.path): " ".join(
            (place.leading_comments + " " + place.trailing_comments).split()
        )
        for place in file.source_code_info.location
    }


def _services(file: Any) -> Iterator[str]:
    said = _comments(file)
    for index, service in enumerate(file.service):
        yield from ("", f"### service {service.name}", "", said.get((6, index), ""), "")
        yield from ("| call | asks with | answers with | |", "|---|---|---|---|")
        for number, method in enumerate(service.method):
            asks = ("stream of " if method.client_streaming else "") + _name(method.input_type)
            answers = ("stream of " if method.server_streaming else "") + _name(method.output_type)
            what = _cell(said.get((6, index, 2, number), ""))
            yield f"| `{method.name}` | {asks} | {answers} | {what} |"


def _messages(file: Any) -> Iterator[str]:
    said = _comments(file)
    for index, message in enumerate(file.message_type):
        if message.options.map_entry:
            continue
        yield from ("", f"### {message.name}", "", said.get((4, index), ""), "")
        if not message.field:
            yield "No fields."
            continue
        yield from ("| field | number | type | |", "|---|---|---|---|")
        maps = {nested.name: nested for nested in message.nested_type}
        for number, field in enumerate(message.field):
            what = _cell(said.get((4, index, 2, number), ""))
            yield f"| `{field.name}` | {field.number} | {_type(field, maps)} | {what} |"


def _type(field: Any, maps: dict[str, Any]) -> str:
    entry = maps.get(field.type_name.rpartition(".")[2])
    if entry is not None and entry.options.map_entry:
        key, value = (_type(part, {}) for part in entry.field)
        return f"map of {key} to {value}"
    kinds = field.DESCRIPTOR.enum_types_by_name["Type"].values_by_number
    plain = f"`{kinds[field.type].name.removeprefix('TYPE_').lower()}`"
    name = _name(field.type_name) if field.type_name else plain
    return f"list of {name}" if field.label == field.LABEL_REPEATED else name


def _name(full: str) -> str:
    short = full.rpartition(".")[2]
    return f"[{short}](#{short.lower()})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
