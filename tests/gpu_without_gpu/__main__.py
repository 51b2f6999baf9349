"""Trace a training on the fake device: the device comes first, then torch.

    python -m tests.gpu_without_gpu hvae --px 256 [--compile on] [--precision fp32] [--card-gib 40]

It prints one line of JSON: the peak of memory, the waits for the device, and the loop's notes.
"""

import sys

from tests.gpu_without_gpu import fake_cuda


def main() -> None:
    """Install the device and trace."""
    if reason := fake_cuda.reason_to_skip():
        raise SystemExit(reason)
    fake_cuda.install()
    from tests.gpu_without_gpu import trace

    trace.main(sys.argv[1:])


if __name__ == "__main__":
    main()
