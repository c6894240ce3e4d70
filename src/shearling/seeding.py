"""Seeds as pure functions of what they are for."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order.

    Whatever is random takes its own seed from the run's seed and a name (``derive_seed(seed, "data", epoch)``), so
    that no draw depends on how many others came before it, and nothing needs a generator's state to be resumed.
    """
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little") >> 1
