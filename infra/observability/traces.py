"""Creates OpenTelemetry spans in a few places, and sends them to the collector of HEADRACE_OTLP_ENDPOINT.

While that is unset, no package of OpenTelemetry is imported and a span costs one comparison.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from infra.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

Describe = Callable[[str, Mapping[str, str | int]], None]

_tracer: "Tracer | None" = None
_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()


def start(settings: Settings, service: str) -> Callable[[], None]:
    """Sends the spans of this process to the collector, if there is one; returns a function that flushes and stops."""
    global _tracer
    if not settings.otlp_endpoint:
        return lambda: None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint.rstrip("/") + "/v1/traces", timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1_000))
    _tracer = provider.get_tracer("headrace")
    return provider.shutdown


def span(name: str, **attributes: str | int | float | bool) -> AbstractContextManager[object]:
    """Returns a context manager for a span below the current one."""
    if _tracer is None:
        return _NOTHING
    return _tracer.start_as_current_span(name, attributes=attributes)


@contextlib.contextmanager
def request_span(name: str, headers: Mapping[str, str]) -> Iterator[Describe]:
    """Opens the span of a whole request, below the caller's span where the header `traceparent` names one.

    Yields a function that sets its name and attributes.
    """
    if _tracer is None:
        yield _ignore
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    caller = TraceContextTextMapPropagator().extract(headers)
    with _tracer.start_as_current_span(name, context=caller, kind=SpanKind.SERVER) as request:

        def describe(name: str, attributes: Mapping[str, str | int]) -> None:
            request.update_name(name)
            request.set_attributes(attributes)

        yield describe


def _ignore(name: str, attributes: Mapping[str, str | int]) -> None:
    pass
