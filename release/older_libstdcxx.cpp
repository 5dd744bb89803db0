// What the headers of GCC 11 and 12 call and libstdc++ 8 or glibc 2.28 lacks; linked into wheels that are built with
// link_stubs.py. `exports.map` hides it: no other library in the process sees it.
#include <exception>
#include <new>
#include <sstream>

extern "C" {
// Of glibc 2.32; whoever assumes several threads is never wrong.
char __libc_single_threaded = 0;

// Of libstdc++ 11; libstdc++ 8 has the copy constructor and the destructor, which are now inline, as functions.
void old_exception_ptr_copy(void* self, const void* other) asm("_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
void old_exception_ptr_destroy(void* self) asm("_ZNSt15__exception_ptr13exception_ptrD1Ev");
void exception_ptr_addref(void* self) asm("_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
void exception_ptr_release(void* self) asm("_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");

void exception_ptr_addref(void* self) {
  void* second = nullptr;
  old_exception_ptr_copy(&second, self);
}
void exception_ptr_release(void* self) {
  old_exception_ptr_destroy(self);
  *static_cast<void**>(self) = nullptr;
}
}

namespace std {
void __throw_bad_array_new_length() {
  throw bad_array_new_length();
}

template basic_stringstream<char>::basic_stringstream();
template basic_ostringstream<char>::basic_ostringstream();
template string basic_stringbuf<char>::str() const&;
template string basic_stringbuf<char>::str() &&;
}  // namespace std
