"""What fits on which GPU, and how much KV cache is left. Decisions alone: no files, no devices."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from types import MappingProxyType
from typing import Literal

# vLLM's default for `gpu_memory_utilization` (vllm/config/cache.py, 0.32 and 0.33): the rest is for
# what no plan knows, such as fragments.
USABLE_SHARE = 0.92
# vLLM hands out the KV cache in blocks of this many tokens (`CacheConfig.DEFAULT_BLOCK_SIZE`).
BLOCK_TOKENS = 16
# No shorter context is offered as a way to make a model fit.
MIN_CONTEXT_TOKENS = 8192
CONTEXT_STEP_TOKENS = 1024
ASLEEP_BYTES = 3 * 2**29
"""What a sleeping engine keeps of each of its GPUs: its CUDA context and graphs. An estimate: some
hundreds of MiB to more than one GiB have been reported."""
# For so many sleepers memory is kept free when there is host memory for them; more of them sleep
# only where some is left.
NUM_RESERVED_SLEEPERS = 2


def gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >> 26 else f"{num_bytes / 2**20:.1f} MiB"


@dataclass(frozen=True, slots=True)
class Device:
    """`taken_bytes` are somebody else's: another process, or what a sleeping engine keeps."""

    index: int
    total_bytes: int
    taken_bytes: int = 0
    usable_share: float = USABLE_SHARE

    @property
    def usable_bytes(self) -> int:
        return max(0, int(self.total_bytes * self.usable_share) - self.taken_bytes)


@dataclass(frozen=True, slots=True)
class Host:
    """`sleep_bytes` is the host memory that sleeping models may take."""

    devices: tuple[Device, ...]
    sleep_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one model takes: weights and KV cache of all its GPUs together, `work_bytes` and
    `gpu_memory_bytes` of each. The `fp8_` ones are what they would be, if there is a choice."""

    model_id: str
    weights_bytes: int
    kv_bytes_per_token: int
    kv_heads: int
    max_model_len: int
    work_bytes: int
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_memory_bytes: int | None = None
    fp8_weights_bytes: int | None = None
    fp8_kv_bytes_per_token: int | None = None
    pinned: bool = False

    @property
    def gpus(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def fixed_bytes(self) -> int:
        """Of each GPU, whatever the KV cache."""
        return -(-self.weights_bytes // self.gpus) + self.work_bytes

    @property
    def block_bytes(self) -> int:
        """Of each GPU, for one block of tokens. More GPUs than KV heads hold copies of them."""
        shards = min(self.tensor_parallel_size, self.kv_heads) * self.pipeline_parallel_size
        return -(-self.kv_bytes_per_token * BLOCK_TOKENS // shards)

    @property
    def context_bytes(self) -> int:
        """Of each GPU, the smallest KV cache that holds one full context."""
        # vLLM never hands out the first block.
        return (-(-self.max_model_len // BLOCK_TOKENS) + 1) * self.block_bytes

    @property
    def least_bytes(self) -> int:
        """Of each GPU: with less the model does not start, or lacks what was set for it."""
        return self.fixed_bytes + (self.gpu_memory_bytes or self.context_bytes)

    def tokens_in(self, kv_bytes: int) -> int:
        return max(0, kv_bytes // self.block_bytes - 1) * BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Change:
    """Keys of the registry, and what to set them to. The KV-cache budget is in bytes."""

    gpu_memory: int | None = None
    quantization: Literal["fp8"] | None = None
    kv_cache_dtype: Literal["fp8"] | None = None
    max_model_len: int | None = None
    tensor_parallel_size: int | None = None

    def applied(self, need: Need) -> Need:
        weights = need.fp8_weights_bytes if self.quantization else None
        kv = need.fp8_kv_bytes_per_token if self.kv_cache_dtype else None
        return replace(
            need,
            gpu_memory_bytes=self.gpu_memory or need.gpu_memory_bytes,
            weights_bytes=weights or need.weights_bytes,
            kv_bytes_per_token=kv or need.kv_bytes_per_token,
            max_model_len=self.max_model_len or need.max_model_len,
            tensor_parallel_size=self.tensor_parallel_size or need.tensor_parallel_size,
        )

    def __str__(self) -> str:
        size = self.gpu_memory and f"{self.gpu_memory >> 20}MiB"
        values = asdict(self) | {"gpu_memory": size}
        return ", ".join(f"{key}: {value}" for key, value in values.items() if value)


@dataclass(frozen=True, slots=True)
class Fit:
    """`kv_bytes` are of each GPU; `kv_tokens` and full contexts are what all of them hold."""

    kv_bytes: int
    kv_tokens: int
    max_concurrent_contexts: float


@dataclass(frozen=True, slots=True)
class Misfit:
    """`changes`, each enough alone, begin with the smallest; there may be none."""

    reason: str
    changes: tuple[Change, ...] = ()


def fit(need: Need, device: Device) -> Fit | Misfit:
    """The model alone, on as many devices like this one as it wants."""
    obstacle = _obstacle(need, device.usable_bytes)
    if obstacle is not None:
        return Misfit(obstacle, tuple(_changes(need, device.usable_bytes)))
    kv_bytes = kv_budget(need, device.usable_bytes)
    tokens = need.tokens_in(kv_bytes)
    return Fit(kv_bytes, tokens, tokens / need.max_model_len)


def alone(need: Need, devices: Sequence[Device]) -> Fit | Misfit:
    """The model with the largest devices to itself."""
    largest = sorted(devices, key=lambda device: -device.usable_bytes)[: need.gpus]
    if len(largest) < need.gpus:
        return Misfit(f"wants {need.gpus} GPUs of {len(largest)}")
    return fit(need, largest[-1])


def kv_budget(need: Need, free_bytes: int, beside: Sequence[Need] = ()) -> int:
    """What to give vLLM as `kv_cache_memory_bytes`, on a device that the model has for itself and
    those `beside` it. 0: they do not all start there.

    One full context for each, and the rest so that each gains as many contexts as the others;
    who has `gpu_memory` set gets that and no more.
    """
    rest_bytes = free_bytes - sum(other.least_bytes for other in (need, *beside))
    if rest_bytes < 0 or _obstacle(need, free_bytes) is not None:
        return 0
    if need.gpu_memory_bytes is not None:
        return need.gpu_memory_bytes
    sharing = sum(other.context_bytes for other in beside if other.gpu_memory_bytes is None)
    return need.context_bytes + rest_bytes * need.context_bytes // (need.context_bytes + sharing)


def placement(
    needs: Iterable[Need],
    devices: Sequence[Device],
    placed: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> dict[str, tuple[int, ...]] | None:
    """Devices for all the models at once, by id; None when no place was found for one of them.

    Models in `placed` stay where they are. Each of the others, the largest first, takes the
    emptiest devices. A tight packing may be missed: then a model swaps that need not.
    """
    free = {device.index: device.usable_bytes for device in devices}
    found: dict[str, tuple[int, ...]] = {}
    for need in sorted(needs, key=lambda n: (n.model_id not in placed, -n.least_bytes)):
        allowed = placed.get(need.model_id, free)
        fitting = [index for index in allowed if _obstacle(need, free[index]) is None]
        if len(fitting) < need.gpus:
            return None
        emptiest = sorted(fitting, key=lambda index: -free[index])[: need.gpus]
        found[need.model_id] = tuple(sorted(emptiest))
        for index in emptiest:
            free[index] -= need.least_bytes
    return found


@dataclass(frozen=True, slots=True)
class Together:
    """`loaded` models lie side by side on their devices.

    `swaps` has for each other model those that must leave for it; a model in none of them never
    fits, alone or beside the pinned ones. `kv_bytes` are the KV budgets of all that fit, for each
    GPU: the loaded ones share what is left, another takes what it finds then.
    """

    loaded: dict[str, tuple[int, ...]]
    kv_bytes: dict[str, int]
    swaps: dict[str, tuple[str, ...]]


def together(needs: Sequence[Need], host: Host) -> Together:
    """As many as fit, pinned ones first, then in the given order; and what the others cost."""
    group = _side_by_side([*(need for need in needs if need.pinned), *needs], host.devices)
    devices = _beside_sleepers(needs, group, host)
    group = _leaving_room(group, [need for need in needs if need not in group], devices)
    placed = placement(group, devices) or {}
    kv_bytes = kv_budgets(group, devices, placed)
    loaded = [replace(need, gpu_memory_bytes=kv_bytes[need.model_id]) for need in group]
    pinned = [need for need in loaded if need.pinned]
    swaps = {}
    for need in (need for need in needs if need.model_id not in placed):
        staying = _side_by_side([*pinned, need, *loaded], devices)
        if need in staying:
            swaps[need.model_id] = tuple(n.model_id for n in loaded if n not in staying)
            kv_bytes[need.model_id] = _rest_bytes(need, staying, devices)
    return Together(placed, kv_bytes, swaps)


def _leaving_room(
    group: Sequence[Need], others: Sequence[Need], devices: Sequence[Device]
) -> list[Need]:
    """The group, its pinned models with no more KV cache than each would have beside each of the
    others: what never leaves must leave room."""
    limits: dict[str, int] = {}
    pinned = [need for need in group if need.pinned]
    for other in others:
        beside = [*pinned, other]
        placed = placement(beside, devices)
        budgets = kv_budgets(beside, devices, placed) if placed is not None else {}
        for model_id, kv_bytes in budgets.items():
            limits[model_id] = min(kv_bytes, limits.get(model_id, kv_bytes))
    return [
        replace(need, gpu_memory_bytes=limits.get(need.model_id, need.gpu_memory_bytes))
        for need in group
    ]


def _rest_bytes(need: Need, staying: Sequence[Need], devices: Sequence[Device]) -> int:
    """The KV budget of one that takes all that the others leave on its GPUs."""
    placed = placement(staying, devices) or {}

    def on(device: Device) -> int:
        here = (n for n in staying if n is not need and device.index in placed[n.model_id])
        return kv_budget(need, device.usable_bytes - sum(n.least_bytes for n in here))

    return min(on(device) for device in devices if device.index in placed[need.model_id])


def _beside_sleepers(
    needs: Sequence[Need], group: Sequence[Need], host: Host
) -> tuple[Device, ...]:
    """The devices less what some sleepers keep of them; whole if nobody takes turns with the group,
    or if one of the models would lose its place."""
    fitting = [need for need in needs if isinstance(alone(need, host.devices), Fit)]
    if len(fitting) == len(group):
        return host.devices
    num_sleepers = min(NUM_RESERVED_SLEEPERS, len(sleepers(needs, host.sleep_bytes)))
    reserved = tuple(
        replace(device, taken_bytes=device.taken_bytes + num_sleepers * ASLEEP_BYTES)
        for device in host.devices
    )
    displaced = any(isinstance(alone(need, reserved), Misfit) for need in fitting)
    if displaced or placement(group, reserved) is None:
        return host.devices
    return reserved


def kv_budgets(
    needs: Sequence[Need], devices: Sequence[Device], placed: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """`kv_budget` of each model that is `placed`: the smallest of its devices."""

    def on(need: Need, device: Device) -> int:
        beside = [n for n in needs if n is not need and device.index in placed[n.model_id]]
        return kv_budget(need, device.usable_bytes, beside)

    return {
        need.model_id: min(on(need, d) for d in devices if d.index in placed[need.model_id])
        for need in needs
    }


def sleepers(needs: Sequence[Need], sleep_bytes: int) -> tuple[str, ...]:
    """The models, in this order, whose weights can all lie in host memory (sleep level 1)."""
    asleep: list[Need] = []
    for need in needs:
        if sum(n.weights_bytes for n in [*asleep, need]) <= sleep_bytes:
            asleep.append(need)
    return tuple(need.model_id for need in asleep)


def _side_by_side(needs: Sequence[Need], devices: Sequence[Device]) -> list[Need]:
    """Each that still fits beside those before it."""
    group: list[Need] = []
    for need in needs:
        if need not in group and placement([*group, need], devices) is not None:
            group.append(need)
    return group


def _obstacle(need: Need, free_bytes: int) -> str | None:
    """Why the model does not start with this much of each GPU, or None."""
    room_bytes = free_bytes - need.fixed_bytes
    kv_bytes = need.gpu_memory_bytes or room_bytes
    if room_bytes < 0:
        return f"{gib(need.fixed_bytes)} of weights and work space, {gib(free_bytes)} of GPU usable"
    if kv_bytes > room_bytes:
        return f"its `gpu_memory` is {gib(kv_bytes)}, and {gib(room_bytes)} is left"
    if kv_bytes < need.context_bytes:
        tokens = need.tokens_in(kv_bytes)
        return f"a context of {need.max_model_len:,} tokens, and KV cache for {tokens:,}"
    return None


def _changes(need: Need, free_bytes: int) -> Iterator[Change]:
    """Those after which the model fits. What costs the clients least comes first."""
    fp8_kv, fp8 = Change(kv_cache_dtype="fp8"), Change(quantization="fp8")
    left_bytes = min(need.gpu_memory_bytes or 0, free_bytes - need.fixed_bytes)
    sizes_mib = (left_bytes >> 20, -(-need.context_bytes >> 20))
    alternatives: list[list[Change | None]] = [
        [Change(gpu_memory=mib << 20) for mib in sizes_mib],
        [fp8_kv],
        [_shorter(need, Change(), free_bytes)],
        [_shorter(need, fp8_kv, free_bytes)] if need.fp8_kv_bytes_per_token else [],
        [fp8, replace(fp8, kv_cache_dtype="fp8")] if need.fp8_weights_bytes else [],
        [Change(tensor_parallel_size=size) for size in _more_gpus(need)],
    ]
    for changes in alternatives:
        enough = (c for c in changes if c and _obstacle(c.applied(need), free_bytes) is None)
        yield from islice(enough, 1)


def _shorter(need: Need, change: Change, free_bytes: int) -> Change | None:
    """`change`, and the longest useful context that fits then."""
    changed = change.applied(need)
    kv_bytes = changed.gpu_memory_bytes or free_bytes - changed.fixed_bytes
    tokens = changed.tokens_in(kv_bytes) // CONTEXT_STEP_TOKENS * CONTEXT_STEP_TOKENS
    useful = MIN_CONTEXT_TOKENS <= tokens < need.max_model_len
    return replace(change, max_model_len=tokens) if useful else None


def _more_gpus(need: Need) -> list[int]:
    """Larger tensor parallel sizes that vLLM takes: they divide the attention heads."""
    now = need.tensor_parallel_size
    # One "head" is the latent of multi-head latent attention, whose real heads are many.
    return [n for n in (now * 2, now * 4, now * 8) if need.kv_heads == 1 or need.kv_heads % n == 0]
