"""What a run is: the keys of its config that say so, its name, and the kind of its net."""

import re
from typing import Any

# Where a run happens, how fast and in how much memory, is not part of what it is; precision is. Nor are the words it
# was asked for with, `choices` and `n`: what they chose stands under `model`, `data` and `recipe`.
NOT_ITSELF = re.compile(
    r"trainer\.(accelerator|devices|num_nodes|strategy|deterministic)|data\.(root|download|num_workers)|logger.*|output_dir"
    r"|activation_checkpointing|compile|protocol|sweep\..*|choices\..*|n"
)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"recipe": {"iterations": 1}} as {"recipe.iterations": 1}; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The flat keys of a config that say what its run is."""
    return {key: value for key, value in flatten(config).items() if not NOT_ITSELF.fullmatch(key)}


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What differs between two flat configs, key by key; empty if nothing does.

    A key that `found` does not have came later than that run, which did what it stands for when off: false, 0, null.
    """
    differ = [k for k in sorted({*found, *wanted}) if found.get(k) != wanted.get(k) and (k in found or wanted[k])]
    return ", ".join(f"{k} was {found.get(k)}, now {wanted.get(k)}" for k in differ)


def family(config: dict[str, Any]) -> str:
    """`plain`, `residual`, or what else a net is called: by the function that makes it."""
    function = config["model"]["_target_"].rpartition(".")[2]
    name = function.removesuffix("_imagenet").removesuffix("_bottleneck")
    return {"resnet": "residual", "preact_resnet": "preactivation"}.get(name, name)


def net_name(model: str, n: int | None) -> str:
    """`resnet56` for model=resnet56 and for model=resnet n=9 (depth 6n+2, Sec. 4.2)."""
    return model if n is None or re.search(r"\d", model) else f"{model}{6 * n + 2:g}"


def run_name(config: dict[str, Any], defaults: dict[str, Any], model: str) -> str:
    """`resnet56-iterations200-s0`: the net, each value that differs from `defaults` under its key, the seed."""
    net = net_name(model, config["model"].get("n"))
    told = {"seed"} if net == model else {"seed", "model.n"}
    usual, parts = identity(defaults), [net]
    for key, value in identity(config).items():
        if key not in told and (key not in usual or usual[key] != value):
            label = "" if key == "trainer.precision" else key.rpartition(".")[2]
            parts.append(label + re.sub(r"[^\w.+-]+", "_", str(value)).strip("_"))
    return "-".join([*parts, f"s{config['seed']}"])
