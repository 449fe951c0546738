/* Teams of one thread without OpenMP.
 *
 * GNU's OpenMP treats a team of one as it does all others, with two system calls to wake those who might wait:
 * 0.8 µs of each call, as much as a small convolution takes. So the linker (--wrap, see setup.py) sends the calls
 * that the compiler makes for parallel regions here; only a region inside another team needs OpenMP to know
 * which thread is which.
 */
#if defined(_OPENMP) && defined(__linux__)
#include <omp.h>

void __real_GOMP_parallel(void (*region)(void *), void *data, unsigned threads, unsigned flags);
__attribute__((visibility("hidden")))
void __wrap_GOMP_parallel(void (*region)(void *), void *data, unsigned threads, unsigned flags)
{
    if (threads == 1 && omp_get_num_threads() == 1)
        region(data);
    else
        __real_GOMP_parallel(region, data, threads, flags);
}
#endif
