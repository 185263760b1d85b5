"""LoRA adapters in files of diffusers, PEFT and kohya: every tensor belongs to a layer of the network, or the file is
refused by its name and the tensor's.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.diffusion.fused_factors import is_of_stable_diffusion_3, split_factors
from prdp.support.errors import StartError
from prdp.support.json_lines import load_json

if TYPE_CHECKING:
    import torch

    from prdp.config import ModelConfig

LORA_FILE = "pytorch_lora_weights.safetensors"
"""Of diffusers."""
PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."
_OF_A_RUN = "weights"
"""Folder inside a run's where its adapter is."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
PEFT_KEYS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
_PEFT_STARTS = (True, False, None, "gaussian")
"""Values of init_lora_weights that leave the base's weights as they are."""
_PARTS = r"\.(?:lora_(?:down|up|A|B)(?:\.default)?\.weight|lora\.(?:down|up)\.weight|alpha)$"
"""Of a layer, behind its name."""
_LEAST_BYTES, _MATRIX = 2, 2
"""Of a number and of dimensions of a factor."""
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OSError, AssertionError)
"""What diffusers raises for names and shapes that it makes nothing of."""


@dataclass(frozen=True)
class AdaptedLayer:
    """The factors of one layer, float: its output grows by scale * up(down(x)).

    Attributes:
        down: [rank, in], of convolutions [rank, in, kernel, kernel].
        up: [out, rank], of convolutions [out, rank, 1, 1].
        scale: alpha / rank.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Inner dimension."""
        return int(self.down.shape[0])

    @property
    def alpha(self) -> float:
        """By which, divided by the rank, the output is scaled."""
        return self.scale * self.rank


@dataclass(frozen=True)
class Adapter:
    """A LoRA of one network.

    Attributes:
        source: its file.
        layers: path of the layer in the network -> its factors.
        weight: by which its output is scaled beside alpha / rank.
    """

    source: Path
    layers: Mapping[str, AdaptedLayer]
    weight: float = 1.0


def model_adapters(model: ModelConfig) -> list[tuple[str, float]]:
    """Path and weight of each of `model.adapters`."""
    weights = model.adapter_weights or [1.0] * len(model.adapters)
    return list(zip(model.adapters, weights, strict=True))


def adapter_file(key: str, path: str) -> Path:
    """The safetensors file that a path names: itself, or the one in a folder of diffusers or PEFT.

    Args:
        key: of the configuration, for messages.

    Raises:
        StartError: there is none; pickles are never opened.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        found = next((place / name for name in (LORA_FILE, PEFT_FILE) if (place / name).is_file()), None)
        if found is None:
            pickles = sorted(one.name for one in place.iterdir() if one.suffix in _PICKLES)
            has = f"; {pickles[0]} is a pickle, which may run code and is never opened" if pickles else ""
            hint = f"; take its folder {_OF_A_RUN}" if (place / _OF_A_RUN / LORA_FILE).is_file() else ""
            raise StartError(f"{key}={path}: the folder holds neither {LORA_FILE} nor {PEFT_FILE}{has}{hint}")
        place = found
    if not place.is_file():
        raise StartError(f"{key}={path}: there is no such file or folder")
    if place.suffix != ".safetensors":
        raise StartError(f"{key}={path}: must be a .safetensors file, or a folder with one; others are never opened")
    if place.name == PEFT_FILE and not (place.parent / PEFT_CONFIG).is_file():
        raise StartError(f"{key}={path}: {PEFT_CONFIG} is missing beside {PEFT_FILE}, which does not tell its alpha")
    return place


def read_tensors(where: str, file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA file under its own names; they are mapped from the disk, not copied.

    Raises:
        StartError: it is no safetensors file, is empty, or holds DoRA.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        raw = load_file(file)
    except (SafetensorError, OSError) as error:
        raise StartError(f"{where}: cannot be read as safetensors: {error}") from error
    if not raw:
        raise StartError(f"{where}: holds no tensor")
    for name, value in raw.items():
        if problem := _tensor_problem(name, value):
            raise StartError(f"{where}: {name}: {problem}")
    scaled = next((name for name in raw if "dora_scale" in name or "magnitude" in name), None)
    if scaled is not None:
        raise StartError(f"{where}: {scaled}: DoRA is not computed, plain LoRA is")
    return dict(raw)


def _tensor_problem(name: str, value: torch.Tensor) -> str:
    """What no factor and no alpha is like, which libraries fail at in many ways; empty where it may be one."""
    if name.endswith(".alpha"):
        return "" if value.numel() == 1 and math.isfinite(float(value)) else "must be one finite number"
    if not re.search(_PARTS, name):
        return ""
    if not value.is_floating_point() or value.itemsize < _LEAST_BYTES:
        told = str(value.dtype).removeprefix("torch.")
        return f"must hold finite numbers of float32, bfloat16 or float16, and holds {told}"
    return "" if value.ndim >= _MATRIX and value.numel() else f"has shape {list(value.shape)}, which no factor has"


def read_peft_config(where: str, file: Path) -> dict[str, Any]:
    """Of adapter_config.json what decides over shapes and scales.

    Raises:
        StartError: it cannot be read, or tells of adapters that are not plain LoRA.
    """
    try:
        config = load_json(file.read_text(encoding="utf-8"))
        if config.get("peft_type") != "LORA":
            raise StartError(f"{where}: {file.name}: peft_type={config.get('peft_type')}: must be LORA")
        found = {key: config[key] for key in PEFT_KEYS if config.get(key) is not None}
        start = config.get("init_lora_weights")
    except (ValueError, AttributeError, OSError) as error:
        if isinstance(error, StartError):
            raise
        raise StartError(f"{where}: {file} cannot be read: {error}") from error
    if missing := [key for key in ("r", "lora_alpha") if key not in found]:
        raise StartError(f"{where}: {file.name}: {missing[0]} is missing")
    if start not in _PEFT_STARTS:
        raise StartError(
            f"{where}: {file.name}: init_lora_weights={start}: adapters that change the base's own weights at their "
            "start are not computed"
        )
    return found


def read_adapter(key: str, path: str, network: Any, pipeline: Any, component: str, weight: float = 1.0) -> Adapter:
    """Read a LoRA and check that it fits a network; its scales are those that diffusers gives to its layers.

    Args:
        key: of the configuration, for messages: model.adapters or learner.init_adapter.
        path: a file or a folder, see `adapter_file`.
        network: the diffusers model, or one of the same configuration on the meta device; not changed.
        pipeline: class of the diffusers pipeline, whose conversion of names is used.
        component: that the network is in it, unet or transformer.
        weight: of the adapter.

    Raises:
        StartError: the file cannot be read, or a tensor belongs to no layer of the network; names file and tensor.
    """
    from prdp.diffusion.lora_file import lora_matrices, network_of_zeros

    file = adapter_file(key, path)
    where = f"{key}: {file}"
    state, origin, alphas, metadata = _converted(where, file, pipeline, component, network)
    empty = network_of_zeros(network)
    factors = _factors(where, empty, state, origin, component)
    if not factors:
        raise StartError(f"{where}: holds no factor of a LoRA of the {component}")
    try:
        with warnings.catch_warnings():
            # peft warns of layers without matrices; all are compared below.
            warnings.simplefilter("ignore", RuntimeWarning)
            load_into(pipeline, component, empty, state, "read", alphas, metadata)
    except _UNREADABLE as error:
        raise StartError(f"{where}: diffusers cannot load it: {error}") from error
    bound, layers = lora_matrices(empty, "read"), {}
    for name, (down, up) in factors.items():
        for part, value in (("lora_A", down), ("lora_B", up)):
            found = bound.get(f"{name}.{part}")
            if found is None or found[0].device.type == "meta" or not found[0].equal(value):
                raise StartError(f"{where}: diffusers does not bind {name}.{part}")
        scale = float(bound[f"{name}.lora_A"][1])
        told = _told_scale(alphas, f"{component}.{name}", int(down.shape[0]))
        if told is not None and abs(told - scale) > 1e-6 * abs(told):
            raise StartError(
                f"{where}: diffusers scales layer {name} by {scale:g}, and the file's alpha / rank is {told:g}: its "
                "loader takes one alpha for all layers of attention; save the file in the format of diffusers or PEFT"
            )
        layers[name] = AdaptedLayer(down, up, scale)
    if bound.keys() - {f"{name}.{part}" for name in layers for part in ("lora_A", "lora_B")}:
        raise StartError(f"{where}: diffusers puts adapters on layers that the file does not hold")
    return Adapter(file, layers, weight)


def _converted(
    where: str, file: Path, pipeline: Any, component: str, network: Any
) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, float], dict[str, Any] | None]:
    """Tensors under peft's names, those names -> names in the file, kohya's alphas, and metadata of diffusers."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    raw = read_tensors(where, file)
    names = {id(value): name for name, value in raw.items()}
    alphas: dict[str, float] = {}
    if file.name == PEFT_FILE:
        settings = read_peft_config(where, file.parent / PEFT_CONFIG)
        inner = {name.removeprefix(PEFT_PREFIX): value for name, value in raw.items()}
        settings["target_modules"] = list(dict.fromkeys(re.sub(r"\.lora_[AB]\.weight$", "", name) for name in inner))
        metadata = {f"{component}.{key}": value for key, value in settings.items()}
        state = {f"{component}.{name}": value for name, value in inner.items()}
    elif component == "transformer" and (text := next((name for name in raw if name.startswith("lora_te")), None)):
        raise StartError(f"{where}: {text}: adapters of text encoders are not computed, those of the transformer are")
    elif is_of_stable_diffusion_3(raw):
        return *_of_stable_diffusion_3(where, raw), {}, None
    else:
        options = lora_options(pipeline, network)
        try:
            state, *given, _ = pipeline.lora_state_dict(dict(raw), return_lora_metadata=True, **options)
            metadata = pipeline.lora_state_dict(
                str(file.parent),
                weight_name=file.name,
                use_safetensors=True,
                local_files_only=True,
                return_lora_metadata=True,
                **options,
            )[-1]
        except _UNREADABLE as error:
            raise StartError(f"{where}: diffusers makes no LoRA of its tensors: {_told(error)}") from error
        alphas = dict(given[0] or {}) if given else {}
        if any(id(value) not in names for value in state.values()):
            return state, _origins(where, raw, state, pipeline), alphas, metadata
    result, origin = {}, {}
    for name, value in state.items():
        known = ".lora_A." in name or ".lora_B." in name
        # One by one: for a whole file diffusers takes the scheme of its first name for that of all.
        plain = name if known else next(iter(convert_unet_state_dict_to_peft({name: value})))
        result[plain], origin[plain] = value, names.get(id(value), name)
    for name in raw:
        if name not in origin.values() and not (alphas and name.endswith(".alpha")):
            raise StartError(f"{where}: {name}: diffusers leaves it out")
    return result, origin, alphas, metadata


def _of_stable_diffusion_3(
    where: str, raw: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Kohya's names, which diffusers does not read: tensors under peft's names with their scales, and those names ->
    names in the file.
    """
    state, origin = {}, {}
    for layer, ((down, up), scale, first) in split_factors(where, raw).items():
        for part, value in (("A", down.float()), ("B", up.float() * scale)):
            name = f"transformer.{layer}.lora_{part}.weight"
            state[name], origin[name] = value, first
    return state, origin


def _origins(
    where: str, raw: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], pipeline: Any
) -> dict[str, str]:
    """Names that diffusers makes -> those in the file, where it scales, splits or fuses the factors of a layer.

    Raises:
        StartError: a layer that nothing becomes of; names a tensor of it.
    """
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in raw.items():
        layers.setdefault(re.split(_PARTS, name)[0], {})[name] = value
    origin: dict[str, str] = {}
    for tensors in layers.values():
        first = min(tensors)
        try:
            made = pipeline.lora_state_dict(dict(tensors))
        except _UNREADABLE as error:
            raise StartError(f"{where}: {first}: diffusers makes no LoRA of it: {_told(error)}") from error
        if not made or made.keys() - state.keys():
            raise StartError(f"{where}: {first}: diffusers leaves it out")
        origin |= dict.fromkeys(made, first)
    return origin


def _told(error: Exception) -> str:
    """What an error says on one line; of those that say nothing, their kind."""
    return " ".join(str(error).split()) or type(error).__name__


def lora_options(pipeline: Any, network: Any) -> dict[str, Any]:
    """What `lora_state_dict` needs: for names of Stability AI's UNet, which trainers keep, and for alphas of FLUX."""
    from diffusers.loaders import FluxLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

    if issubclass(pipeline, StableDiffusionXLLoraLoaderMixin):
        return {"unet_config": network.config}
    return {"return_alphas": True} if issubclass(pipeline, FluxLoraLoaderMixin) else {}


def _factors(
    where: str, network: torch.nn.Module, state: Mapping[str, torch.Tensor], origin: Mapping[str, str], component: str
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> its two factors, all of whose shapes fit the network."""
    import torch

    from prdp.diffusion.lora_targets import ADAPTED, weight_shape

    modules, found = dict(network.named_modules()), dict[str, dict[str, torch.Tensor]]()
    for name, value in state.items():
        told = f"{where}: {origin.get(name, name)}"
        if name.startswith("text_encoder"):
            raise StartError(f"{told}: adapters of text encoders are not computed, those of the {component} are")
        match = re.fullmatch(rf"{component}\.(.+)\.lora_([AB])\.weight", name)
        if match is None:
            other = name.partition(".")[0]
            known = other in ("unet", "transformer") and other != component
            of = f"; it is of a {other}, which other families have" if known else ""
            raise StartError(f"{told}: is no factor of a LoRA of the {component}{of}")
        layer, part = match.groups()
        if not isinstance(modules.get(layer), ADAPTED):
            raise StartError(
                f"{told}: {type(network).__name__} has no linear layer or convolution '{layer}'; the file is of "
                "another model"
            )
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise StartError(f"{told}: must hold finite numbers")
        found.setdefault(layer, {})[part] = value
    for layer, parts in found.items():
        if len(parts) != 2:
            (only,) = parts
            missing = "up (lora_B)" if only == "A" else "down (lora_A)"
            raise StartError(
                f"{where}: {origin[f'{component}.{layer}.lora_{only}.weight']}: its other factor, {missing}, is missing"
            )
        module: Any = modules[layer]
        rank, outside = int(parts["A"].shape[0]), weight_shape(module)
        inside = (1,) * (len(outside) - 2)
        for part, expected in (("A", (rank, *outside[1:])), ("B", (outside[0], rank, *inside))):
            shape = tuple(parts[part].shape)
            if shape != expected:
                name = origin[f"{component}.{layer}.lora_{part}.weight"]
                raise StartError(f"{where}: {name}: has shape {list(shape)}, expected {list(expected)}")
    return {layer: (parts["A"], parts["B"]) for layer, parts in found.items()}


def load_into(
    pipeline: Any,
    component: str,
    network: Any,
    state: Mapping[str, torch.Tensor],
    name: str,
    alphas: Mapping[str, float] | None,
    metadata: Any,
) -> None:
    """Put a LoRA beside the layers of a network by the loader of its pipeline's class.

    Args:
        state, metadata: of `lora_state_dict`.
        name: of the adapter.
        alphas: kohya's, for loaders that take them; of others they are in the factors.
    """
    loader = getattr(pipeline, f"load_lora_into_{component}")
    taken = "network_alphas" in inspect.signature(loader).parameters
    loader(
        dict(state),
        **({"network_alphas": alphas or None} if taken else {}),
        **{component: network},
        adapter_name=name,
        metadata=metadata,
        low_cpu_mem_usage=True,
    )


def _told_scale(alphas: Mapping[str, float], layer: str, rank: int) -> float | None:
    """alpha / rank of a layer by kohya's own tensor; None where there is none."""
    for name, alpha in alphas.items():
        if _plain(name.removesuffix(".alpha")) == layer:
            return alpha / rank
    return None


def _plain(name: str) -> str:
    """The layer of a name of an alpha, which in diffusers' conversion may be that of a whole tensor."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    tensor = name if name.endswith(".weight") else f"{name}.lora.down.weight"
    return next(iter(convert_unet_state_dict_to_peft({tensor: None}))).partition(".lora_A.")[0]
