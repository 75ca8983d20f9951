"""Templates: every text that a model is asked is a Jinja file that a person can read and change.

A template set is a directory with `<step>.system.j2` (optional) and `<step>.user.j2`. Values from data sets and models
are hostile: templates pass them through `fenced`, and an unknown variable is an error, not an empty string.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import yaml

from shard_dist.artefacts import value_hash
from shard_dist.records import Message

# What each step's program passes to its two templates: a name that is not here is found before the first call.
VARIABLES: dict[str, frozenset[str]] = {
    "assistant": frozenset(),
    "guidelines": frozenset({"category", "principles"}),
    "rewrite": frozenset({"prompt", "category", "principles", "guidelines"}),
    "reframe": frozenset(
        {
            "prompt",
            "draft",
            "rewritten_prompt",
            "response_mode",
            "reformulated_component",
            "preserved_benign_need",
        }
    ),
    "judge_helpfulness": frozenset({"prompt", "answer_a", "answer_b", "boundary"}),
    "judge_harm": frozenset({"prompt", "answer_a", "answer_b", "boundary"}),
    "judge_topic": frozenset({"prompt", "answer", "boundary"}),
    "rate_helpfulness": frozenset({"prompt", "answer", "boundary"}),
    "rate_harmlessness": frozenset({"prompt", "answer", "boundary"}),
    "rate_strongreject": frozenset({"prompt", "answer", "boundary"}),
    "rate_xstest": frozenset({"prompt", "answer", "boundary"}),
    "rate_do_not_answer": frozenset({"prompt", "answer", "boundary"}),
}


def fenced(text: str, tag: str, boundary: str = "") -> str:
    """`text` between <tag> and </tag>, with every such tag inside it escaped, so that it cannot close its own fence.

    With `boundary` the tag is <tag-boundary>, a code that whoever wrote the text cannot have known. The escape can be
    undone: it is "&lt;" for the tag's "<", and one "amp;" more where "&lt;" or "&amp;lt;" stood there before.
    """
    name = f"{tag}-{boundary}" if boundary else tag
    # str() so that an undefined variable is Jinja's error; the nested group keeps the search linear in runs of spaces.
    rest = rf"\s*(?:/\s*)?(?i:{re.escape(name)})\b"
    opening = rf"<(?={rest})|&(?=(?:amp;)*lt;{rest})"
    inner = re.sub(opening, lambda match: "&lt;" if match[0] == "<" else "&amp;", str(text))
    return f"<{name}>\n{inner}\n</{name}>"


def defuse(text: str, specials: tuple[str, ...]) -> str:
    """`text` with every special token of a tokenizer broken by a space after its first character.

    Without this a prompt that contains <|im_end|> would end its own turn and could speak as the system.
    """
    for special in specials:
        if len(special) > 1 and special in text:
            text = text.replace(special, special[0] + " " + special[1:])
    return text


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Texts that a Hugging Face tokenizer would read as control tokens, the longest first."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(added | set(tokenizer.all_special_tokens), key=lambda token: (-len(token), token)))


class Templates:
    """A template set by name (shipped) or by directory, over the `texts` that a recipe brings along.

    Raises ValueError where there is no such set.
    """

    def __init__(self, name: str, texts: Mapping[str, str] | None = None) -> None:
        self.name, self.texts = name, dict(texts or {})
        shipped = Path(str(files("shard_dist.prompts"))) / "templates" / name
        self.root = Path(name) if Path(name).is_dir() else shipped
        if not self.root.is_dir():
            known = sorted(path.name for path in shipped.parent.iterdir() if path.is_dir())
            raise ValueError(f"recipe.templates: no template set {name!r}; shipped sets: {known}, or give a directory")
        loader = jinja2.ChoiceLoader([jinja2.FileSystemLoader(self.root), jinja2.DictLoader(self.texts)])
        # autoescape is for HTML; these texts go to models, and `fenced` is their escape.
        self.environment = jinja2.Environment(
            loader=loader,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
        )
        self.environment.filters["fenced"] = fenced

    def __reduce__(self) -> tuple[type[Templates], tuple[str, dict[str, str]]]:
        # A Jinja environment does not travel, its name does; a directory by its whole path.
        return Templates, (str(Path(self.name).absolute()) if Path(self.name).is_dir() else self.name, self.texts)

    def has(self, name: str) -> bool:
        return name in self.texts or (self.root / name).is_file()

    def check(self, steps: Iterable[str], variables: Mapping[str, frozenset[str]] | None = None) -> None:
        """Raise ValueError for the first template of `steps` that is missing, does not compile or names an unknown.

        `variables` says what the steps of a recipe are given, beyond VARIABLES. What an included template needs may
        also be set by the one that includes it.
        """
        given = {**VARIABLES, **(variables or {})}
        lacking = [f"{step}.user.j2" for step in steps if not self.has(f"{step}.user.j2")]
        if lacking:
            raise ValueError(f"recipe.templates: the set {self.name!r} lacks {', '.join(lacking)}")
        for step in ("assistant", *steps):
            for name in (f"{step}.system.j2", f"{step}.user.j2"):
                if self.has(name):
                    self._check_file(name, given[step], ())

    def _check_file(self, name: str, known: frozenset[str], above: tuple[str, ...]) -> None:
        where = f"recipe.templates: {self.root / name}"
        try:
            assert self.environment.loader is not None
            tree = self.environment.parse(self.environment.loader.get_source(self.environment, name)[0], name)
            undeclared = jinja2.meta.find_undeclared_variables(tree)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"{where}, line {error.lineno}: {error.message}") from None
        except jinja2.TemplateNotFound:
            raise ValueError(f"{where} is not there; {above[-1]} includes it") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is no UTF-8: {error}") from None
        for unknown in sorted(undeclared - known - set(self.environment.globals)):
            near = difflib.get_close_matches(unknown, sorted(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known)) or 'none'}"
            line = min(node.lineno for node in tree.find_all(jinja2.nodes.Name) if node.name == unknown)
            raise ValueError(f"{where}, line {line}: unknown variable {unknown!r}; {hint}")
        names = {node.name for node in tree.find_all(jinja2.nodes.Name) if node.ctx == "store"}
        for inner in jinja2.meta.find_referenced_templates(tree):
            if inner is not None and inner not in (*above, name):
                self._check_file(inner, known | names, (*above, name))

    def render(self, step: str, role: str, **values: object) -> str:
        """The text of `<step>.<role>.j2`, or "" where the set has none. Raises ValueError for a faulty template."""
        name = f"{step}.{role}.j2"
        if not self.has(name):
            return ""
        try:
            return self.environment.get_template(name).render(**values).strip()
        except jinja2.TemplateError as error:
            raise ValueError(f"template {self.root / name}: {error}") from error

    def messages(self, step: str, **values: object) -> tuple[Message, ...]:
        """System message (if the set has one for this step) and user message of a step."""
        system, user = self.render(step, "system", **values), self.render(step, "user", **values)
        if not user:
            raise ValueError(f"template {self.root / (step + '.user.j2')} is missing or renders to nothing")
        head = ({"role": "system", "content": system},) if system else ()
        return (*head, {"role": "user", "content": user})

    def digest(self) -> str:
        """Hash of every file of the set and of the principles: a changed word makes a stage run again."""
        paths = sorted(self.root.glob("*.j2"))
        files = [[path.name, path.read_text(encoding="utf-8")] for path in paths]
        return value_hash([principles(), files, *([sorted(self.texts.items())] if self.texts else [])])

    def chat(self, prompt: str, context: str = "") -> tuple[Message, ...]:
        """A user's own prompt under the assistant's system message: how drafts, training and every arm ask.

        `context` stands beneath that message.
        """
        system = "\n\n".join(filter(None, (self.render("assistant", "system"), context)))
        head = ({"role": "system", "content": system},) if system else ()
        return (*head, {"role": "user", "content": prompt})


@cache
def principles() -> tuple[dict[str, str], ...]:
    """The universal principles: name, source, text."""
    return tuple(yaml.safe_load((files("shard_dist.prompts") / "principles.yaml").read_text(encoding="utf-8")))
