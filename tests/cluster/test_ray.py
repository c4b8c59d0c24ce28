"""What Ray is told, and how what it says is understood: without a cluster."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
)
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    RequestCancelledError,
)
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
)

from tenuto.engine.ray import _autoscaling, _reached, _state, _version, error_of, hosted
from tenuto.engine.types import EngineSpec, LoraSpec, Scale
from tenuto.errors import ApiError, BadRequest, EngineLost, InternalError, Unavailable

pytestmark = pytest.mark.cluster
SPEC = EngineSpec("a", Path("/models/a"))


def test_without_gpus_a_replica_has_a_processor() -> None:
    assert hosted(replace(SPEC, tensor_parallel_size=4), 0)[1] == {
        "ray_actor_options": {"num_cpus": 1}
    }


@pytest.mark.parametrize(("tensor", "pipeline", "num_gpus"), [(1, 1, 1), (2, 1, 2), (2, 4, 8)])
def test_gpus_of_one_host(tensor: int, pipeline: int, num_gpus: int) -> None:
    spec = replace(SPEC, tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)
    found, options = hosted(spec, 8)
    assert found is spec
    assert options == {"ray_actor_options": {"num_cpus": 1, "num_gpus": num_gpus}}


def test_a_model_larger_than_a_host() -> None:
    args = {"max_num_seqs": 4}
    spec = replace(SPEC, tensor_parallel_size=4, pipeline_parallel_size=2, engine_args=args)
    found, options = hosted(spec, 4)
    assert found.engine_args == {"distributed_executor_backend": "ray", "max_num_seqs": 4}
    assert spec.engine_args == {"max_num_seqs": 4}
    assert options == {
        "ray_actor_options": {"num_cpus": 1},
        "placement_group_bundles": [{"CPU": 1, "GPU": 1}] * 8,
        "placement_group_strategy": "PACK",
    }


def test_the_registry_has_the_last_word_on_the_executor() -> None:
    args = {"distributed_executor_backend": "mp"}
    found, _ = hosted(replace(SPEC, tensor_parallel_size=2, engine_args=args), 1)
    assert found.engine_args == args


def test_every_front_end_finds_the_same_version() -> None:
    assert _version(SPEC) == _version(EngineSpec("a", Path("/models/a")))


@pytest.mark.parametrize("change", [{"chat_template": "{{ x }}"}, {"tool_parser": "hermes"}])
def test_what_front_ends_do_replaces_no_replica(change: dict[str, Any]) -> None:
    assert _version(replace(SPEC, **change)) == _version(SPEC)


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": Path("/models/b")},
        {"max_model_len": 64},
        {"tensor_parallel_size": 2},
        {"reasoning_parser": "qwen3"},
        {"loras": (LoraSpec("l", Path("/loras/l"), 8),)},
        {"engine_args": {"max_num_seqs": 4}},
    ],
)
def test_what_engines_do_replaces_replicas(change: dict[str, Any]) -> None:
    assert _version(replace(SPEC, **change)) != _version(SPEC)


@pytest.mark.parametrize("scale", [Scale(), Scale(0, 8, 5, 7.5), Scale(3, 3, 1)])
def test_ray_takes_the_scale(scale: Scale) -> None:
    found = AutoscalingConfig(**_autoscaling(scale))
    assert (found.min_replicas, found.max_replicas) == (scale.min_replicas, scale.max_replicas)
    assert found.target_ongoing_requests == scale.target_ongoing_requests
    assert found.downscale_to_zero_delay_s == scale.idle_s


def overview(status: ApplicationStatus, **replicas: int) -> ApplicationStatusOverview:
    states: dict[Any, int] = dict(replicas)
    deployment = DeploymentStatusOverview(
        DeploymentStatus.UPDATING, DeploymentStatusTrigger.UNSPECIFIED, states, ""
    )
    return ApplicationStatusOverview(status, "/a/path of a host", 0.0, {"engine": deployment})


@pytest.mark.parametrize(
    ("status", "replicas", "state"),
    [
        (ApplicationStatus.RUNNING, {"RUNNING": 1}, "ready"),
        (ApplicationStatus.RUNNING, {}, "cold"),
        (ApplicationStatus.DEPLOYING, {"STARTING": 2}, "loading"),
        # One serves while others are replaced or have died.
        (ApplicationStatus.DEPLOYING, {"RUNNING": 1, "STARTING": 1, "STOPPING": 1}, "ready"),
        (ApplicationStatus.UNHEALTHY, {"RUNNING": 1}, "ready"),
        (ApplicationStatus.UNHEALTHY, {"STARTING": 1}, "loading"),
        (ApplicationStatus.DELETING, {"STOPPING": 1}, "cold"),
    ],
)
def test_states(status: ApplicationStatus, replicas: dict[str, int], state: str) -> None:
    assert _state(overview(status, **replicas)) == (state, None)


def test_a_failure_names_no_path() -> None:
    state, reason = _state(overview(ApplicationStatus.DEPLOY_FAILED, STARTING=1))
    assert state == "failed"
    assert reason
    assert "path" not in reason


def test_an_application_without_deployments() -> None:
    app = ApplicationStatusOverview(ApplicationStatus.NOT_STARTED, "", 0.0, {})
    assert _state(app) == ("cold", None)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BackPressureError(1, 1), Unavailable),
        (DeploymentUnavailableError.__new__(DeploymentUnavailableError), Unavailable),
        (RayActorError(), EngineLost),
        (ActorDiedError(), EngineLost),
        (ActorUnavailableError("gone", None), EngineLost),
        (RequestCancelledError("r"), EngineLost),
        (TaskCancelledError(), InternalError),
        (ZeroDivisionError("a prompt"), InternalError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_errors_by_type(error: Exception, kind: type[ApiError]) -> None:
    assert type(error_of(error, "r")) is kind


def test_an_error_of_ours_stays_what_it_is() -> None:
    error = BadRequest("too long", param="prompt")
    assert error_of(error, "r") is error


def test_an_error_of_ours_comes_from_a_replica_as_it_was() -> None:
    cause = BadRequest("too long", param="prompt")
    raised = RayTaskError("generate", "a trace", cause).as_instanceof_cause()
    found = error_of(raised, "r")
    assert isinstance(found, BadRequest)


def test_what_is_not_known_is_logged_by_type(caplog: pytest.LogCaptureFixture) -> None:
    error_of(ZeroDivisionError("by zero"), "r-1")
    assert "request r-1: ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    "error", [RayActorError(), RayServeException("x"), ConnectionError("x"), RuntimeError("x")]
)
def test_a_head_that_cannot_be_asked(error: Exception) -> None:
    with pytest.raises(Unavailable, match="the Ray cluster does not answer"), _reached():
        raise error


def test_a_fault_of_ours_is_not_taken_for_the_cluster() -> None:
    with pytest.raises(KeyError), _reached():
        raise KeyError("x")
