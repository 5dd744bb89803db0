// Numbers below 1e-38 as zero, for the duration of a scope: probabilities decay through that range, and arithmetic on
// denormals is a hundred times slower on some processors.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace deeplab_fast {

#if defined(__SSE__)
class FlushDenormals {
 public:
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }  // flush to zero, denormals are zero
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
};
#else
class FlushDenormals {
 public:
  ~FlushDenormals() {}
};
#endif

}  // namespace deeplab_fast
