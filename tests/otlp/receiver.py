#!/usr/bin/env python3
"""An OTLP receiver from the official protobuf definitions (PyPI: opentelemetry-proto, grpcio): checks what Probity exports.

usage: receiver.py grpc|http PORT SECONDS

Takes traces and metrics for SECONDS, then prints what it saw and exits 1 when a trace is not as it should be: every child inside its
parent's trace, its parent known, and the phases of a run one after the other, adding up to it.
"""
import collections
import http.server
import sys
import threading
import time
from concurrent import futures

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

spans, metrics, resources = {}, collections.Counter(), {}
lock = threading.Lock()


def attributes(of):
    return {a.key: a.value.string_value or a.value.int_value or a.value.bool_value or a.value.double_value for a in of}


def take_traces(request):
    with lock:
        for rs in request.resource_spans:
            found = attributes(rs.resource.attributes)
            resources[(found.get("service.name"), found.get("service.instance.id"))] = found
            for ss in rs.scope_spans:
                for s in ss.spans:
                    spans[s.span_id.hex()] = s


def take_metrics(request):
    with lock:
        for rm in request.resource_metrics:
            for sm in rm.scope_metrics:
                for m in sm.metrics:
                    metrics[(m.name, m.WhichOneof("data"))] += 1


def serve_grpc(port):
    import grpc
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):
            take_traces(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request, context):
            take_metrics(request)
            return metrics_service_pb2.ExportMetricsServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server


def serve_http(port):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path.endswith("/v1/traces"):
                request = trace_service_pb2.ExportTraceServiceRequest()
                request.ParseFromString(body)
                take_traces(request)
            else:
                request = metrics_service_pb2.ExportMetricsServiceRequest()
                request.ParseFromString(body)
                take_metrics(request)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    threading.Thread(target=http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever, daemon=True).start()


def judge():
    wrong, by_parent, names = [], collections.defaultdict(list), collections.Counter()
    for s in spans.values():
        names[s.name] += 1
        parent = s.parent_span_id.hex()
        if parent:
            by_parent[parent].append(s)
            if parent in spans and spans[parent].trace_id != s.trace_id:
                wrong.append(f"{s.name}: its parent is in another trace")
    summed = 0
    for parent, children in by_parent.items():
        p = spans.get(parent)
        if p is None or not p.name.startswith("probe"):
            continue
        children.sort(key=lambda s: s.start_time_unix_nano)
        total = sum(c.end_time_unix_nano - c.start_time_unix_nano for c in children)
        if abs(total - (p.end_time_unix_nano - p.start_time_unix_nano)) > 2_000 * (len(children) + 1):
            wrong.append(f"{p.name}: phases take {total} ns, the run {p.end_time_unix_nano - p.start_time_unix_nano} ns")
        for a, b in zip(children, children[1:]):
            if b.start_time_unix_nano < a.end_time_unix_nano:
                wrong.append(f"{p.name}: {b.name} begins before {a.name} ends")
        summed += 1
    for name in resources:
        if not all(name):
            wrong.append(f"a resource without service.name or service.instance.id: {resources[name]}")
    print("spans", dict(names))
    print("runs whose phases add up", summed)
    print("resources", sorted(map(str, resources)))
    print("metrics", {f"{name} ({kind})": n for (name, kind), n in metrics.items()})
    print("errors", sum(1 for s in spans.values() if s.status.code == 2), "links", sum(len(s.links) for s in spans.values()))
    for line in wrong[:20]:
        print("WRONG", line)
    if not summed:
        print("WRONG no run with phases was received")
    return 1 if wrong or not summed else 0


def main():
    kind, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    # Kept: a server that nobody holds is collected, and stops.
    server = (serve_grpc if kind == "grpc" else serve_http)(port)
    time.sleep(seconds)
    del server
    with lock:
        sys.exit(judge())


main()
