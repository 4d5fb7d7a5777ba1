"""Torch-Pruning on the architectures of the zoo, as its documentation says to use it.

    python benchmarks/rival.py NAME    # one line of JSON: what came of it

`BasePruner` with magnitude importance removes half of the channels of every layer but the output
layers, which are told to it; it gets the same inputs (positional or keyword) and the same choice of
outputs as the supernet. Where the zoo knows them it is also given the numbers of heads, head
pruning as in its examples, and the examples' updates of the attention modules' sizes afterwards.
The run counts as a success if nothing raises, more than 5 % of the parameters are gone, and the
pruned model still runs forward and returns tensors of the same shapes, all finite, and runs
backward. Whether its outputs are right is not asked of it.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import zoo
from masked import loss_of, outputs_of
from torch import Tensor, nn

from nestling.construction import picker

RATIO = 0.5
LEAST = 0.05  # share of the parameters that must be gone
LANGUAGE = ("q_proj", "k_proj", "v_proj")  # layers to which its LLM example gives heads


def prune(name: str, hints: bool) -> dict[str, Any]:
    """Return what Torch-Pruning makes of an architecture.

    Args:
        name: of the architecture.
        hints: whether to tell it the numbers of heads.

    Returns:
        `ok`, `left` (share of the parameters), `note` (what went wrong) and `hints`.
    """
    import torch_pruning

    case = zoo.make(name)
    model, pick = case.model, picker(case.outputs)
    before = sum(parameter.numel() for parameter in model.parameters())
    shapes = [t.shape for t in outputs_of(pick, model(*case.args, **case.kwargs))]
    heads = _heads(name, model) if hints else {}
    result: dict[str, Any] = {"ok": False, "left": 1.0, "note": "", "hints": _told(heads)}
    step = "building its pruner"
    try:
        pruner = torch_pruning.pruner.BasePruner(
            model,
            case.kwargs if case.kwargs else case.args,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=RATIO,
            ignored_layers=_output_layers(case),
            output_transform=pick,
            num_heads=dict(heads),
            prune_num_heads=bool(heads),
            prune_head_dims=not heads,
            head_pruning_ratio=RATIO if heads else 0.0,
        )
        step = "pruning"
        pruner.step()
        _update_sizes(model, pruner.num_heads)
        result["left"] = sum(p.numel() for p in model.parameters()) / before
        step = "the pruned model's forward run"
        outputs = outputs_of(pick, model(*case.args, **case.kwargs))
        if [t.shape for t in outputs] != shapes:
            result["note"] = "the pruned model returns other shapes"
        elif not all(bool(t.isfinite().all()) for t in outputs):
            result["note"] = "the pruned model returns numbers that are not finite"
        elif result["left"] > 1 - LEAST:
            result["note"] = f"it removes {1 - result['left']:.1%} of the parameters"
        else:
            step = "the pruned model's backward run"
            loss_of(outputs).backward()
            result["ok"] = True
    except Exception as error:  # noqa: BLE001  (whatever a foreign tool raises is its result)
        text = " ".join(str(error).split())[:160]
        result["note"] = f"{step}: {type(error).__name__}: {text}"
    return result


def _heads(name: str, model: nn.Module) -> Mapping[nn.Module, int]:
    """Return the numbers of heads: of the zoo, or as in Torch-Pruning's example for LLMs."""
    known = zoo.ARCHITECTURES[name].heads
    if known is not None:
        return known(model)
    found = {}
    config = getattr(model, "config", None)
    for path, module in model.named_modules():
        last = path.rpartition(".")[2]
        if isinstance(module, nn.Linear) and last in LANGUAGE:
            own = getattr(config, "num_attention_heads", None)
            grouped = getattr(config, "num_key_value_heads", own)
            number = own if last == "q_proj" else grouped
            if isinstance(number, int):
                found[module] = number
    return found


def _told(heads: Mapping[nn.Module, int]) -> str:
    return f"num_heads of {len(heads)} layers, whole heads pruned" if heads else ""


def _update_sizes(model: nn.Module, heads: Mapping[nn.Module, int]) -> None:
    """Set the sizes that attention modules keep, as the examples of Torch-Pruning do."""
    for parent in model.modules():
        for name, layer in parent.named_children():
            if layer not in heads:
                continue
            parts = 3 if name == "qkv" else 1
            width = layer.out_features // parts  # type: ignore[operator]
            sizes = {
                "num_heads": heads[layer],
                "num_attention_heads": heads[layer],
                "n_heads": heads[layer],
                "head_dim": width // heads[layer],
                "attention_head_size": width // heads[layer],
                "all_head_size": width,
                "attn_dim": width,
            }
            if name in ("k_proj", "v_proj", "key", "value"):
                continue  # of grouped queries; the query's numbers stand in the module
            for key, value in sizes.items():
                if isinstance(vars(parent).get(key), int):
                    setattr(parent, key, value)


def _output_layers(case: zoo.Case) -> list[nn.Module]:
    """Return the layers whose own results are outputs of the model, or else the last one."""
    model, pick = case.model, picker(case.outputs)
    made: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            made.append((module, output))

    handles = [
        module.register_forward_hook(note)
        for module in model.modules()
        if not any(module.children()) and any(True for _ in module.parameters(recurse=False))
    ]
    with torch.no_grad():
        needed = outputs_of(pick, model(*case.args, **case.kwargs))
    for handle in handles:
        handle.remove()
    places = {tensor.untyped_storage().data_ptr() for tensor in needed}
    found = [m for m, tensor in made if tensor.untyped_storage().data_ptr() in places]
    return list(dict.fromkeys(found)) or [made[-1][0]]


def main() -> None:
    """Prune one architecture and print what came of it as one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--hints", action="store_true", help="tell it the numbers of heads")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(json.dumps(prune(options.name, options.hints)))


if __name__ == "__main__":
    main()
