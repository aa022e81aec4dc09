"""OpenTelemetry traces, made by hand in few places, and nothing at all unless a collector is named.

While HEADRACE_OTLP_ENDPOINT is unset, no package of OpenTelemetry is imported and a span costs a comparison.
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
    """Send the spans of this process to the collector, if there is one; returns what sends the last of them."""
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
    """A part of the work, below the span that is open around it."""
    if _tracer is None:
        return _NOTHING
    return _tracer.start_as_current_span(name, attributes=attributes)


@contextlib.contextmanager
def request_span(name: str, headers: Mapping[str, str]) -> Iterator[Describe]:
    """The span of a whole request, below the caller's where `traceparent` names one; yields what names it
    and sets its attributes."""
    if _tracer is None:
        yield _ignore
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    above = TraceContextTextMapPropagator().extract(headers)
    with _tracer.start_as_current_span(name, context=above, kind=SpanKind.SERVER) as made:

        def describe(name: str, attributes: Mapping[str, str | int]) -> None:
            made.update_name(name)
            made.set_attributes(attributes)

        yield describe


def _ignore(name: str, attributes: Mapping[str, str | int]) -> None:
    pass
