"""A process that serves one GGUF with llama.cpp until its standard input ends: with its parent, however that ends.

It is run as a file, and knows nothing of ftkit. Its first line on standard output is the address, on a free port.
"""

import sys


def main(path: str, threads: str, context_tokens: str) -> None:
    """Load the model, say where it is served, and wait."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.port = 0
    params.n_ctx = int(context_tokens)
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.warmup = False
    params.ui = False
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
