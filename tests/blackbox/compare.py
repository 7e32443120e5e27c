#!/usr/bin/env python3
"""Asks two exporters the same, and compares names, labels and those values that do not measure time.

compare.py BLACKBOX PROBITY HTTP TLS TCP DNS DEAD  (base URLs, then host:port of each target)
"""
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

BLACKBOX, PROBITY, HTTP, TLS, TCP, DNS, DEAD = sys.argv[1:8]

# Measured, so never equal.
TIMES = re.compile(r"^probe_(\w+_)?duration_seconds|^probe_dns_lookup_time_seconds|^probe_icmp_duration_seconds")
# What newer versions than Debian's have, and Probity too.
NEWER = {"probe_timeout_seconds", "probe_tls_cipher_info"}

CASES = [
    ("http_2xx", HTTP), ("http_2xx", f"http://{HTTP}/redirect"), ("http_2xx", f"http://{HTTP}/missing"), ("http_2xx", DEAD),
    ("http_default", HTTP), ("http_post", HTTP), ("http_no_follow", f"http://{HTTP}/redirect"), ("http_302", f"http://{HTTP}/redirect"),
    ("http_404", f"http://{HTTP}/missing"), ("http_404", HTTP), ("http_regex_good", HTTP), ("http_regex_bad", HTTP),
    ("http_header", HTTP), ("http_header_missing", HTTP), ("http_header_bad", HTTP), ("http_header_absent", HTTP), ("http_version", HTTP), ("http_small", HTTP), ("http_not_ssl", HTTP), ("http_ssl", f"https://{TLS}"),
    ("http_auth", f"http://{HTTP}/auth"), ("http_2xx", f"http://{HTTP}/auth"), ("http_2xx", f"http://{HTTP}/file"),
    ("http_tls", f"https://{TLS}"), ("http_tls_untrusted", f"https://{TLS}"),
    ("tcp", TCP), ("tcp", DEAD), ("tcp_banner", TCP), ("tcp_wrong_banner", TCP), ("tcp_talk", TCP), ("tcp_tls", TLS),
    ("dns", DNS), ("dns_tcp", DNS), ("dns_nx", DNS), ("dns_nx_wanted", DNS), ("dns_any", DNS), ("icmp", "127.0.0.1"), ("icmp_large", "127.0.0.1"),
    ("grpc_plain", DEAD),
]
# Where blackbox is wrong or says less (docs/blackbox.md): these series may be on Probity's side alone.
BETTER = {
    # The certificate of a handshake that failed.
    "http_tls_untrusted": {"probe_ssl_earliest_cert_expiry", "probe_ssl_last_chain_expiry_timestamp_seconds", "probe_ssl_last_chain_info"},
}
# Values that differ on purpose, by module.
DIFFERS = {
    # Blackbox counts what it read before it gave up.
    "http_small": {"probe_http_uncompressed_body_length"},
    # A redirect that is not followed is none here, and its body is read.
    "http_no_follow": {"probe_http_redirects", "probe_http_uncompressed_body_length"},
    "http_302": {"probe_http_redirects", "probe_http_uncompressed_body_length"},
    # Headers are judged before the body is read.
    "http_header_missing": {"probe_http_uncompressed_body_length"},
    # Without verification there is no verified chain: Go says the year 1.
    "http_ssl": {"probe_ssl_last_chain_expiry_timestamp_seconds"},
    # Whether TLS was used, of a request whose handshake failed.
    "http_tls_untrusted": {"probe_http_ssl"},
}
# Series of blackbox's that say nothing: without TLS a certificate expires in the year 1.
EMPTY = {"grpc_plain": {"probe_ssl_earliest_cert_expiry"}}


def scrape(base, module, target):
    query = urllib.parse.urlencode({"module": module, "target": target})
    request = urllib.request.Request(f"{base}/probe?{query}", headers={"X-Prometheus-Scrape-Timeout-Seconds": "10"})
    with urllib.request.urlopen(request, timeout=15) as answer:
        assert answer.status == 200, answer.status
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4"), answer.headers["content-type"]
        text = answer.read().decode()
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    helps = {line for line in text.splitlines() if line.startswith("#")}
    # A label that newer versions have.
    return {re.sub(r',serialnumber="[0-9a-f]*"', "", k): float(v) for k, v in samples.items()}, helps


def status(base, path, headers=None, method="GET"):
    try:
        with urllib.request.urlopen(urllib.request.Request(base + path, headers=headers or {}, method=method), timeout=15) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def main():
    wrong = []
    for module, target in CASES:
        theirs, their_helps = scrape(BLACKBOX, module, target)
        ours, our_helps = scrape(PROBITY, module, target)
        family = lambda series: series.split("{")[0]
        missing = {s for s in theirs if s not in ours and family(s) not in EMPTY.get(module, set())}
        extra = {s for s in ours if s not in theirs and family(s) not in NEWER and family(s) not in BETTER.get(module, set())}
        for series in sorted(missing):
            wrong.append(f"{module} {target}: {series} is missing")
        for series in sorted(extra):
            wrong.append(f"{module} {target}: {series} is not blackbox's")
        for series in sorted(set(theirs) & set(ours)):
            if TIMES.search(series) or family(series) in DIFFERS.get(module, set()):
                continue
            if theirs[series] != ours[series]:
                wrong.append(f"{module} {target}: {series} is {ours[series]}, blackbox says {theirs[series]}")
        for line in sorted(their_helps - our_helps):
            name = line.split(" ")[2]
            if name not in EMPTY.get(module, set()) and not any(s.startswith(name) for s in missing):
                wrong.append(f"{module}: {line!r} is not said")
        print(f"{module:20} {target:40} success {theirs['probe_success']:.0f}/{ours['probe_success']:.0f}, {len(theirs)} and {len(ours)} series")
    bad_header = {"X-Prometheus-Scrape-Timeout-Seconds": "x"}
    for path, headers, method in [
        ("/probe?module=nope&target=x", None, "GET"), ("/probe?module=http_2xx", None, "GET"), ("/probe?module=tcp&target=x", bad_header, "GET"),
        ("/-/healthy", None, "GET"), ("/-/reload", None, "GET"), ("/-/reload", None, "POST"), ("/metrics", None, "GET"), ("/config", None, "GET"),
        ("/", None, "GET"), ("/logs?id=0", None, "GET"), ("/logs?id=99999", None, "GET"), (f"/probe?module=tcp&target={TCP}&debug=true", None, "GET"),
    ]:
        theirs, ours = status(BLACKBOX, path, headers, method), status(PROBITY, path, headers, method)
        print(f"{method} {path}: {theirs} and {ours}")
        if theirs != ours:
            wrong.append(f"{method} {path} answers {ours}, blackbox {theirs}")
    for line in wrong:
        print(f"DIFFERS {line}")
    print(f"{len(CASES)} probes compared, {len(wrong)} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
