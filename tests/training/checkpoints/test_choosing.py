"""Which weights are taken from a file that holds several, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from xclip_deploy.errors import (
    CheckpointError,
    CheckpointReadError,
    InvalidArgumentError,
    UnknownLayoutError,
)
from xclip_deploy.training.checkpoints import (
    Checkpoint,
    CheckpointOptions,
    load_checkpoint,
    read_weights,
)

StateDict = dict[str, Tensor]
Save = Callable[..., Path]
AssertSame = Callable[[StateDict, StateDict], None]


@pytest.fixture
def raw(layouts: Any, xclip_weights: StateDict) -> StateDict:
    weights: StateDict = layouts.authors(xclip_weights)
    return weights


@pytest.fixture
def average(raw: StateDict) -> StateDict:
    return {name: tensor + 0.5 for name, tensor in raw.items()}


def under(prefix: str, weights: Mapping[str, Tensor]) -> StateDict:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def is_average(checkpoint: Checkpoint, average: StateDict) -> bool:
    return torch.equal(
        checkpoint.state_dict["scorer.global_mat_weight"], average["global_mat_weight"]
    )


def with_weights(weights: str) -> CheckpointOptions:
    return CheckpointOptions(weights=weights)


KEYS = ["model_ema", "ema", "state_dict_ema", "ema_state_dict", "ema_model", "params_ema"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("inner", ["", "module."])
def test_raw_weights_and_their_moving_average(
    save: Save, raw: StateDict, average: StateDict, key: str, inner: str
) -> None:
    path = save({"model": raw, key: under(inner, average), "epoch": 3})
    usual = load_checkpoint(path)
    assert not is_average(usual, average)
    assert any(
        f"took the weights under model; the file also holds their moving average under {key}"
        in note
        and "--weights ema" in note
        for note in usual.notes
    )
    quiet = load_checkpoint(path, with_weights("raw"))
    assert not is_average(quiet, average)
    assert not any("took" in note for note in quiet.notes)
    for chosen in ("ema", key):
        assert is_average(load_checkpoint(path, with_weights(chosen)), average)


@pytest.mark.parametrize("key", KEYS)
def test_a_file_of_the_moving_average_alone(
    save: Save, raw: StateDict, average: StateDict, key: str
) -> None:
    path = save({key: average, "epoch": torch.tensor(3)})
    for options in (CheckpointOptions(), with_weights("ema"), with_weights(key)):
        assert is_average(load_checkpoint(path, options), average)
    assert any(f"took the moving average under {key}" in n for n in load_checkpoint(path).notes)
    with pytest.raises(InvalidArgumentError, match=f"weights=raw.*average alone, under {key}"):
        load_checkpoint(path, with_weights("raw"))


@pytest.mark.parametrize("keys", [("shadow",), ("module",), ("model", "state_dict")])
def test_a_moving_average_inside_more_wrappers(
    save: Save, raw: StateDict, average: StateDict, keys: tuple[str, ...]
) -> None:
    content: Any = average
    for key in reversed(keys):
        content = {key: content, "decay": 0.999}
    path = save({"model": raw, "ema": content})
    assert is_average(load_checkpoint(path, with_weights("ema")), average)
    assert not is_average(load_checkpoint(path), average)


@pytest.mark.parametrize("prefix", ["model_ema.", "ema_model.module.", "model.ema."])
def test_a_moving_average_in_the_same_state_dict(
    save: Save, raw: StateDict, average: StateDict, prefix: str
) -> None:
    path = save({"state_dict": {**under("model.", raw), **under(prefix, average)}})
    usual = load_checkpoint(path)
    assert not is_average(usual, average)
    assert any("--weights ema" in note for note in usual.notes)
    assert is_average(load_checkpoint(path, with_weights("ema")), average)
    alone = save({"state_dict": under(prefix, average)}, "alone.pt")
    assert is_average(load_checkpoint(alone), average)


def test_pytorchs_averaged_model(layouts: Any, save: Save, xclip_weights: StateDict) -> None:
    config = layouts.config(layouts.heads.TRANSFORMER, is_xclip=True)
    from xclip_deploy.training.model import XClip

    averaged = torch.optim.swa_utils.AveragedModel(XClip(config))
    averaged.module.load_state_dict(xclip_weights)
    checkpoint = load_checkpoint(save(averaged.state_dict()))
    assert torch.equal(
        checkpoint.state_dict["scorer.global_mat_weight"], xclip_weights["scorer.global_mat_weight"]
    )
    assert "took the names under module; left out n_averaged" in checkpoint.notes


def test_an_average_that_is_not_there(save: Save, raw: StateDict) -> None:
    for content in (raw, {"model": raw}):
        with pytest.raises(InvalidArgumentError, match="weights=ema, but the file holds") as caught:
            load_checkpoint(save(content), with_weights("ema"))
        assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("is_flat", [False, True])
def test_several_averages(save: Save, raw: StateDict, average: StateDict, is_flat: bool) -> None:
    other = {name: value * 2 for name, value in average.items()}
    both: dict[str, Any] = {"ema_fast": other, "ema_slow": average}
    if is_flat:
        both = {**under("ema_fast.", other), **under("ema_slow.", average)}
    alone = save(both, "alone.pt")
    model = under("model.", raw) if is_flat else {"model": raw}
    beside = save({**model, **both}, "beside.pt")
    for path, options in (
        (alone, CheckpointOptions()),
        (alone, with_weights("ema")),
        (beside, with_weights("ema")),
    ):
        with pytest.raises(
            CheckpointReadError, match=r"under ema_fast, ema_slow; say which.*--weights ema_fast"
        ):
            load_checkpoint(path, options)
    for path in (alone, beside):
        assert is_average(load_checkpoint(path, with_weights("ema_slow")), average)
        assert not is_average(load_checkpoint(path, with_weights("ema_fast")), average)
    usual = load_checkpoint(beside)
    assert not is_average(usual, average)
    assert any("--weights ema_fast" in note for note in usual.notes)
    assert not is_average(load_checkpoint(beside, with_weights("raw")), average)
    with pytest.raises(InvalidArgumentError, match=r"weights=raw.*alone, under ema_fast"):
        load_checkpoint(alone, with_weights("raw"))


def test_averages_of_two_modules_are_not_mixed(
    save: Save, raw: StateDict, average: StateDict
) -> None:
    # Where both have a name, the later one took the place of the earlier.
    some = dict(list(raw.items())[1:])
    path = save({**under("a.ema.", average), **under("b.ema.", some)})
    for options in (CheckpointOptions(), with_weights("ema")):
        with pytest.raises(CheckpointReadError, match=r"under a\.ema, b\.ema; say which"):
            load_checkpoint(path, options)
    assert is_average(load_checkpoint(path, with_weights("a.ema")), average)
    wrapped = save(
        {
            **under("a.ema.", average),
            **under("a._orig_mod.ema.", some),
        },
        "wrapped.pt",
    )
    with pytest.raises(UnknownLayoutError, match="is there twice, with and without wrappers"):
        load_checkpoint(wrapped)


@pytest.mark.parametrize("weights", ["", 3, b"ema"])
def test_weights_that_are_no_name(weights: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="weights"):
        CheckpointOptions(weights=weights)


WRAPPERS = ["net", "network", "weights", "params", "model_state", "clip4clip", "video_model"]


@pytest.mark.parametrize("key", WRAPPERS)
def test_other_wrappers(save: Save, raw: StateDict, key: str) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    content = {key: raw, "optimizer": optimizer, "rng_state": torch.zeros(4, dtype=torch.uint8)}
    assert load_checkpoint(save(content)).layout == "X-CLIP"
    assert load_checkpoint(save(under(f"{key}.", raw), "flat.pt")).layout == "X-CLIP"


@pytest.mark.parametrize("flat", [False, True])
def test_a_student_and_its_teacher(
    save: Save, raw: StateDict, average: StateDict, flat: bool
) -> None:
    both = {"student": raw, "teacher": average}
    content: Any = {**under("student.", raw), **under("teacher.", average)} if flat else both
    path = save(content)
    with pytest.raises(
        CheckpointReadError, match=r"holds weights under student, teacher; say which.*--weights stu"
    ):
        load_checkpoint(path)
    assert is_average(load_checkpoint(path, with_weights("teacher")), average)
    assert not is_average(load_checkpoint(path, with_weights("student")), average)
    single = save({"teacher": average}, "single.pt")
    assert "took the weights under teacher" in load_checkpoint(single).notes


def test_two_unknown_models(save: Save, raw: StateDict, average: StateDict) -> None:
    path = save({"first": raw, "second": average})
    with pytest.raises(CheckpointReadError, match="under first, second; say which to take"):
        load_checkpoint(path)
    assert is_average(load_checkpoint(path, with_weights("second")), average)
    flat = save({**under("a.", raw), **under("b.", average)}, "flat.pt")
    with pytest.raises(UnknownLayoutError, match="a model under each of a, b; say which"):
        load_checkpoint(flat)
    assert is_average(load_checkpoint(flat, with_weights("b")), average)


@pytest.mark.parametrize(
    "wrapper", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "_fpw_module"]
)
@pytest.mark.parametrize("where", ["front", "blocks", "both"])
def test_wrappers_of_fsdp_and_of_activation_checkpointing(
    save: Save, assert_same: AssertSame, raw: StateDict, wrapper: str, where: str
) -> None:
    content = dict(raw)
    if where != "front":
        content = {
            ".".join(
                f"{part}.{wrapper}" if part.isdigit() else part for part in name.split(".")
            ): tensor
            for name, tensor in content.items()
        }
    if where != "blocks":
        content = under(f"module.{wrapper}.", content)
    assert_same(read_weights(save(content)).tensors, raw)


def test_a_name_with_and_without_wrapper(save: Save) -> None:
    content = {"a.x": torch.ones(1), "_orig_mod.a.x": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="is there twice"):
        read_weights(save(content))


@pytest.mark.parametrize("prefix", ["model.", "module.", "net.", "encoder.model."])
def test_one_foreign_key_beside_a_prefix(save: Save, raw: StateDict, prefix: str) -> None:
    content = {**under(prefix, raw), "loss.weight": torch.ones(2)}
    checkpoint = load_checkpoint(save({"state_dict": content}))
    assert checkpoint.layout == "X-CLIP"
    assert any("left out loss.weight" in note for note in checkpoint.notes)


def test_many_foreign_keys_beside_a_prefix(save: Save, raw: StateDict) -> None:
    others = {f"head.{number}.weight": torch.ones(2) for number in range(20)}
    path = save({"state_dict": {**under("backbone.", raw), **others}})
    with pytest.raises(
        UnknownLayoutError, match=r"beside a model under backbone it holds 20 other tensors.*"
    ) as caught:
        load_checkpoint(path)
    assert "--weights backbone" in str(caught.value)
    assert load_checkpoint(path, with_weights("backbone")).layout == "X-CLIP"


def test_a_foreign_key_beside_the_weights_themselves_is_an_error(
    save: Save, raw: StateDict
) -> None:
    with pytest.raises(CheckpointError, match=r"unexpected loss\.weight"):
        load_checkpoint(save({**raw, "loss.weight": torch.ones(2)}))


LORA = [
    "base_model.model.visual.transformer.resblocks.0.attn.out_proj.lora_A.weight",
    "visual.transformer.resblocks.0.mlp.c_fc.lora_B.default.weight",
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
]


@pytest.mark.parametrize("name", LORA)
@pytest.mark.parametrize("beside", [False, True])
def test_adapters_are_named_with_the_way_to_merge_them(
    save: Save, raw: StateDict, name: str, beside: bool
) -> None:
    path = save({name: torch.ones(2, 2), **(raw if beside else {})})
    with pytest.raises(UnknownLayoutError, match="LoRA adapters") as caught:
        load_checkpoint(path)
    assert "merge_and_unload()" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_adapters(tmp_path: Path) -> None:
    save_file({LORA[0]: torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UnknownLayoutError, match=r"LoRA adapters and no model.*merge_and_unload"):
        load_checkpoint(tmp_path)


def test_flattened_parameters_of_fsdp(save: Save) -> None:
    path = save({"module._flat_param": torch.ones(9)})
    with pytest.raises(UnknownLayoutError, match=r"flattened parameters of FSDP.*full_state_dict"):
        load_checkpoint(path)


def test_a_folder_of_a_distributed_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"\x80\x02}.")
    with pytest.raises(CheckpointReadError, match="dcp_to_torch"):
        load_checkpoint(tmp_path)


class Shard(nn.Module):
    """Stand-in of a sharded tensor, which needs a process group to be made."""

    def __reduce__(self) -> tuple[Any, ...]:
        from torch.distributed.tensor import DTensor

        return (DTensor, ())


@pytest.mark.filterwarnings("ignore")
def test_one_shard_of_a_split_checkpoint(save: Save) -> None:
    with pytest.raises(CheckpointReadError, match=r"part of a checkpoint that FSDP.*full_state"):
        load_checkpoint(save({"model": {"a.x": Shard()}}))


def test_names_are_shown_in_printable_characters(save: Save, raw: StateDict) -> None:
    hostile = "\x1b]0;title\x07" + "x" * 900
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(save({**raw, hostile: torch.ones(1)}))
    assert "\\x1b]0;title\\x07" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
