#!/usr/bin/env python3
"""Prints a node's alerts as JSON lines, each once, also over restarts of either side.

The position is kept by the daemon under the consumer's name: an alert is acknowledged when it has
been printed, so that the next start goes on behind it.
"""

import argparse
import queue
import sys

import grpc
from google.protobuf.json_format import MessageToJson

from monitor.v1 import monitor_pb2, monitor_pb2_grpc


def read(path):
    with open(path, "rb") as file:
        return file.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="HOST:PORT of the node")
    parser.add_argument("--ca", required=True, help="authority of the node's certificate, PEM")
    parser.add_argument("--cert", required=True, help="certificate that says who reads, PEM")
    parser.add_argument("--key", required=True, help="its key, PEM")
    parser.add_argument("--consumer", required=True, help="name under which the position is kept")
    parser.add_argument("--count", type=int, help="end after so many alerts")
    options = parser.parse_args()

    credentials = grpc.ssl_channel_credentials(
        read(options.ca), read(options.key), read(options.cert)
    )
    requests = queue.SimpleQueue()
    start = monitor_pb2.AlertsRequest.Start(
        consumer=options.consumer,
        durable=True,
        acknowledged=monitor_pb2.AlertsRequest.Acknowledged(),
    )
    requests.put(monitor_pb2.AlertsRequest(start=start))
    with grpc.secure_channel(options.address, credentials) as channel:
        stub = monitor_pb2_grpc.MonitorStub(channel)
        last, printed = None, 0
        for response in stub.Alerts(iter(requests.get, None)):
            kind = response.WhichOneof("response")
            if kind == "alert":
                if printed == options.count:
                    # Not acknowledged, so it is the next start's first.
                    continue
                print(MessageToJson(response.alert, indent=None), flush=True)
                printed += 1
                last = response.alert.cursor
                requests.put(monitor_pb2.AlertsRequest(acknowledge=last))
            elif kind in ("expired", "gap", "journal_changed"):
                # What is missing is as important as what is there.
                print(kind, MessageToJson(getattr(response, kind), indent=None), file=sys.stderr)
            elif kind == "acknowledged" and response.acknowledged.cursor == last:
                # Kept on disk: to end now means to be sent nothing twice.
                if printed == options.count:
                    requests.put(None)
                    return
    sys.exit("the daemon has ended the stream")


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
