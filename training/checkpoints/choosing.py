"""Choose the state dict of a checkpoint that holds more: wrappers, averages, two models.

Training scripts put a state dict under a key (``model``), or names under a prefix (``model.``).
Some files hold a moving average of the weights as well, or a student and its teacher.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from xclip_deploy.errors import CheckpointReadError, InvalidArgumentError, UnknownLayoutError
from xclip_deploy.training.checkpoints.layouts import LAYOUTS
from xclip_deploy.training.checkpoints.pickles import NotDense
from xclip_deploy.training.checkpoints.refusals import listing, shown_name
from xclip_deploy.training.checkpoints.torchscript import MAX_NAME_LENGTH, MAX_NAMES

SAVED_CONFIG_KEY = "xclip_deploy_config"
SAVED_SQUARE_PIXELS_KEY = "xclip_deploy_square_pixels"
"""Key of the ``ModelConfig``, as JSON, beside the state dict of a checkpoint of ours."""

# Training scripts wrap a state dict in these keys: PyTorch's and Lightning's habit, timm's,
# the PyTorch tutorials', DeepSpeed's, and those of others.
_WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "module"),
    *("net", "network", "weights", "params", "model_state"),
)
_MAX_DEPTH = 5
# DistributedDataParallel and Lightning put these before every name.
_WRAPPER_PREFIXES = ("module.", "model.")
# torch.compile, FSDP, activation checkpointing and Lightning's Fabric put these anywhere.
_WRAPPER_PARTS = frozenset(
    {
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_fpw_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
    }
)
_MAX_FOREIGN = 8
"""Most tensors beside a model's prefix that are left out with a note, such as a loss's weight."""


class _Role(Enum):
    """Meaning of a key or prefix, by its words."""

    AVERAGE = r"(?:^|_)(?:ema|swa|shadow|averaged?)(?:$|_)"
    MODEL = r"(?:^|_)(?:student|teacher)(?:$|_)"
    OTHER = r"(?:^|_)(?:optim|optimizer|optimizers|scheduler|scaler|rng|random)(?:$|_)"


def _role(name: str) -> _Role | None:
    """Return what the last part of a name says; a very long name says nothing."""
    if len(name) > MAX_NAME_LENGTH:
        return None
    name = name.rpartition(".")[2]
    return next((role for role in _Role if re.search(role.value, name.lower())), None)


@dataclass
class Choice:
    """Search for one state dict; it keeps what was asked and what was found."""

    wanted: str | None
    """``raw``, ``ema``, or the key or prefix of the weights; None takes the usual ones."""
    is_met: bool = False
    """True once the wanted weights were found."""
    saved_config: str | None = None
    """Content of ``SAVED_CONFIG_KEY``."""
    square_pixels: bool = False
    """Content of ``SAVED_SQUARE_PIXELS_KEY``."""
    notes: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    """Keys and prefixes that hold weights, for the message."""

    def among(self, names: list[str], usual: list[str], has_own: bool) -> str | None:
        """Choose one of several places that hold weights; None: those that are in none.

        ``usual``: names that hold the weights themselves, best first. ``has_own``: there are
        weights beside the named places.

        Raises:
            CheckpointReadError: only the user can choose.
            InvalidArgumentError: the wanted weights are not there.
        """
        self.found += [name for name in names if name not in self.found]
        if self.wanted in names:
            self.is_met = True
            return self.wanted
        averages = [name for name in names if _role(name) is _Role.AVERAGE]
        if self.wanted == "ema" and averages and not self.is_met:
            if len(averages) > 1:
                raise _ask_which("moving averages", averages)
            self.is_met = True
            return averages[0]
        models = [name for name in names if _role(name) is _Role.MODEL]
        if usual or has_own:
            self._note_left(usual[0] if usual else None, averages, models)
            return usual[0] if usual else None
        # A file of one average, or of one of two models, has one choice.
        group = models or [name for name in names if name not in averages] or averages
        if len(group) > 1 and not (group is averages and self.wanted == "raw"):
            raise _ask_which("weights", group)
        self._note_only(group[0], averages)
        return group[0]

    def _note_left(self, taken: str | None, averages: list[str], models: list[str]) -> None:
        left = [*averages, *models]
        if left and self.wanted != "raw":
            way = "ema" if len(averages) == 1 else shown_name(left[0])
            self.notes.append(
                f"took the weights {f'under {shown_name(taken)}' if taken else 'as trained'}; "
                f"the file also holds {'their moving average' if averages else 'a model'} under "
                f"{shown_name(left[0])}, which weights={way} (--weights {way}) takes"
            )

    def _note_only(self, taken: str, averages: list[str]) -> None:
        if taken not in averages:
            self.notes.append(f"took the weights under {shown_name(taken)}")
            return
        if self.wanted == "raw":
            raise InvalidArgumentError(
                f"weights=raw, but the file holds a moving average alone, under {shown_name(taken)}"
            )
        self.notes.append(
            f"took the moving average under {shown_name(taken)}: the file holds no other weights"
        )
        self.is_met = self.is_met or self.wanted == "ema"

    def check(self) -> None:
        """Raise InvalidArgumentError where the wanted weights were not there."""
        if self.wanted in (None, "raw") or self.is_met:
            return
        held = f"weights under {listing(self.found)}" if self.found else "one state dict"
        wanted = shown_name(str(self.wanted))
        raise InvalidArgumentError(f"weights={wanted}, but the file holds {held}")


def _ask_which(what: str, names: list[str]) -> CheckpointReadError:
    first = shown_name(names[0])
    return CheckpointReadError(
        f"holds {what} under {listing(names)}; say which to take, such as "
        f"weights={first} (--weights {first})"
    )


def open_wrappers(content: object, choice: Choice) -> dict[str, Tensor | NotDense]:
    """Find the chosen state dict in what a file holds.

    Raises:
        CheckpointReadError: there is none, or only the user can choose.
        InvalidArgumentError: the wanted weights are not there.
    """
    seen: dict[tuple[int, int], bool] = {}
    for _ in range(_MAX_DEPTH):
        if not isinstance(content, Mapping):
            break
        config = content.get(SAVED_CONFIG_KEY)
        choice.saved_config = config if isinstance(config, str) else choice.saved_config
        choice.square_pixels |= content.get(SAVED_SQUARE_PIXELS_KEY) is True
        named = {
            name: value
            for name, value in content.items()
            if isinstance(name, str) and isinstance(value, (Tensor, NotDense))
        }
        places = [
            key
            for key, value in content.items()
            if isinstance(key, str)
            and _holds_tensors(value, seen)
            and _role(key) is not _Role.OTHER
        ]
        # A generator's state or a step number beside the weights has no dot in its name.
        has_own = any("." in name for name in named) or not places
        usual = [key for key in _WRAPPERS if key in places]
        place = choice.among(places, usual, has_own and bool(named)) if places else None
        if place is None:
            # An epoch number or another extra state is no weight.
            if named:
                return _checked(named)
            break
        content = content[place]
    found = (
        "a dict with " + listing(sorted(key for key in content if isinstance(key, str)))
        if isinstance(content, Mapping)
        else f"a {type(content).__name__}"
    )
    raise CheckpointReadError(
        f"holds no named weights: found {found}, expected a state dict; "
        "save it with: torch.save(model.state_dict(), path)"
    )


def _checked(named: dict[str, Tensor | NotDense]) -> dict[str, Tensor | NotDense]:
    longest = max(map(len, named))
    if len(named) > MAX_NAMES or longest > MAX_NAME_LENGTH:
        raise CheckpointReadError(
            f"has {len(named)} tensors with names of up to {longest} characters; at most "
            f"{MAX_NAMES} and {MAX_NAME_LENGTH} are read"
        )
    return named


def _holds_tensors(value: object, seen: dict[tuple[int, int], bool], depth: int = 3) -> bool:
    """Tell whether a dict or those under its usual keys hold tensors.

    ``seen``: answers by identity and depth. A few shared dicts can make a tree without end.
    """
    if not isinstance(value, Mapping):
        return False
    place = (id(value), depth)
    if place not in seen:
        seen[place] = any(isinstance(entry, (Tensor, NotDense)) for entry in value.values()) or (
            depth > 0
            and any(
                _holds_tensors(inner, seen, depth - 1)
                for key, inner in value.items()
                if isinstance(inner, Mapping) and _is_usual(key)
            )
        )
    return seen[place]


def _is_usual(key: object) -> bool:
    if not isinstance(key, str):
        return False
    return key in _WRAPPERS or _role(key) not in (None, _Role.OTHER)


def strip_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip the prefixes of distributed and compiled models, and of wrapped blocks.

    Raises:
        UnknownLayoutError: two names become one.
    """
    stripped: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name
        if any(part in name for part in _WRAPPER_PARTS):
            short = ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)
        if short in stripped:
            raise _there_twice(name)
        stripped[short] = tensor
    while True:
        shared = [p for p in _WRAPPER_PREFIXES if all(n.startswith(p) for n in stripped)]
        if not stripped or not shared:
            return stripped
        stripped = {name[len(shared[0]) :]: value for name, value in stripped.items()}


def _there_twice(name: str) -> UnknownLayoutError:
    return UnknownLayoutError(f"{shown_name(name)} is there twice, with and without wrappers")


def choose_by_prefix(tensors: dict[str, Tensor], choice: Choice) -> dict[str, Tensor]:
    """Choose among averages and models whose names have a prefix, and strip foreign prefixes.

    Raises:
        CheckpointReadError, UnknownLayoutError: only the user can choose.
        InvalidArgumentError: the wanted weights are not there.
    """
    chosen = _without_averages(tensors, choice)
    return _under_known_prefix(strip_wrappers(chosen), choice)


def _without_averages(tensors: dict[str, Tensor], choice: Choice) -> dict[str, Tensor]:
    groups: dict[str, dict[str, Tensor]] = {}
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        roles = [_role(part) for part in parts[: min(3, len(parts) - 1)]]
        at = next((n for n, r in enumerate(roles) if r in (_Role.AVERAGE, _Role.MODEL)), None)
        if at is None:
            own[name] = tensor
        else:
            # Two modules of one name, such as generator.ema and critic.ema, are two groups.
            prefix = ".".join(part for part in parts[: at + 1] if part not in _WRAPPER_PARTS)
            group = groups.setdefault(prefix, {})
            rest = ".".join(parts[at + 1 :])
            if rest in group:
                raise _there_twice(name)
            group[rest] = tensor
    if not groups:
        return tensors
    # The last part alone names a group, where it can mean no other.
    short = {prefix: prefix.rpartition(".")[2] for prefix in groups}
    counts = Counter(short.values())
    named = {
        last if counts[last] == 1 else prefix: groups[prefix] for prefix, last in short.items()
    }
    if choice.wanted in groups:
        choice.is_met = True
        return groups[choice.wanted]
    place = choice.among(list(named), [], any("." in name for name in own))
    if place is None:
        return own
    return named[place]


def _under_known_prefix(tensors: dict[str, Tensor], choice: Choice) -> dict[str, Tensor]:
    """Find the one prefix under which the names are of a known layout."""
    level = {"": tensors}
    for _ in range(3):
        known = [prefix for prefix, group in level.items() if _layout_matches(group)]
        if known:
            return _take(tensors, level, known, choice)
        deeper: dict[str, dict[str, Tensor]] = {}
        for prefix, group in level.items():
            for name, tensor in group.items():
                part, dot, rest = name.partition(".")
                if dot:
                    deeper.setdefault(f"{prefix}{part}.", {})[rest] = tensor
        level = deeper
    return tensors


def _take(
    tensors: Mapping[str, Tensor],
    groups: Mapping[str, dict[str, Tensor]],
    known: list[str],
    choice: Choice,
) -> dict[str, Tensor]:
    places = [prefix.removesuffix(".") for prefix in known]
    if len(known) > 1 and choice.wanted not in places:
        raise UnknownLayoutError(
            f"holds a model under each of {listing(places)}; say which to take, such as "
            f"weights={shown_name(places[0])} (--weights {shown_name(places[0])})"
        )
    is_asked = choice.wanted in places
    place = choice.wanted if is_asked and choice.wanted is not None else places[0]
    prefix = known[places.index(place)]
    choice.is_met = choice.is_met or is_asked
    shown = shown_name(place)
    left = [name for name in tensors if not name.startswith(prefix)]
    if len(left) > _MAX_FOREIGN and not is_asked:
        raise UnknownLayoutError(
            f"beside a model under {shown} it holds {len(left)} other tensors, such as "
            f"{listing(left, limit=3)}; to take the model alone pass weights={shown} "
            f"(--weights {shown})"
        )
    if left:
        choice.notes.append(f"took the names under {shown}; left out {listing(left)}")
    return groups[prefix]


def _layout_matches(names: Iterable[str]) -> bool:
    found = list(names)
    return any(layout.matches(found) for layout in LAYOUTS)
