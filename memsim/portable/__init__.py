"""Random numbers and float32 functions that have the same bits on every CPU, GPU and version of torch.

A random number is a function of a key and a counter alone, so it does not depend on chunks, threads or the order of
draws. Philox 4x32-10 (Salmon et al., SC 2011) turns a counter of four 32-bit words into four random words.

Every sum and product is rounded by itself: neither torch operations that multiply and add at once (addcmul, addmm) nor
the contraction of compilers is used. Additions, multiplications, divisions and square roots of IEEE 754 then give the
same bits everywhere. Logarithm, exponential, sine and cosine are polynomials, accurate to the last bits of a float32.

`elementwise` is the definition, in torch operations for any device; `compiled` has the same for CPUs, in numba.
"""
