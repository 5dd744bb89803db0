// Which instruction set the wide inner loops use. They are compiled once per set from the same sources (*_isa.cpp) and
// chosen at run time. Every subject has tables of its kernels, structs of function pointers, one table a set.
#pragma once

// The instruction sets, best first: name, and whether this processor has it. This is the only list of them: CMake reads
// it (from lines that begin with two spaces and SET) and compiles a set for the features named in HAS.
// DEEPLAB_FAST_FURTHER_SETS: tests add one.
#ifndef DEEPLAB_FAST_FURTHER_SETS
#define DEEPLAB_FAST_FURTHER_SETS(SET, ...)
#endif
#if defined(__x86_64__)
// clang-format off
#define DEEPLAB_FAST_INSTRUCTION_SETS(SET, ...) \
  DEEPLAB_FAST_FURTHER_SETS(SET, __VA_ARGS__) \
  SET(avx512, HAS(avx512f) && HAS(avx512vl) && HAS(avx512bw) && HAS(avx512dq) && HAS(avx2) && HAS(fma), __VA_ARGS__) \
  SET(avx2, HAS(avx2) && HAS(fma), __VA_ARGS__) \
  SET(baseline, true, __VA_ARGS__)
// clang-format on
#else
#define DEEPLAB_FAST_INSTRUCTION_SETS(SET, ...) \
  DEEPLAB_FAST_FURTHER_SETS(SET, __VA_ARGS__)   \
  SET(baseline, true, __VA_ARGS__)
#endif

namespace deeplab_fast {

// Number of the best set that this processor has, or of the one that the environment variable DEEPLAB_FAST_ISA names.
// Throws std::invalid_argument when that one is unknown or not to be had.
int instruction_set();
const char* instruction_set_name();

}  // namespace deeplab_fast

// For the file that declares the tables of a subject: defines `const Table& table()`, the table of the chosen set, from
// the variables `table` in the sets' namespaces. A set without one does not link.
#define DEEPLAB_FAST_DECLARE_TABLE(set, supported, Table, table) \
  namespace set {                                                \
  extern const Table table;                                      \
  }
#define DEEPLAB_FAST_POINTER_TO_TABLE(set, supported, Table, table) &set::table,
#define DEEPLAB_FAST_CHOOSE_TABLE(Table, table)                                      \
  DEEPLAB_FAST_INSTRUCTION_SETS(DEEPLAB_FAST_DECLARE_TABLE, Table, table)            \
  const Table& table() {                                                             \
    static constexpr const Table* tables[] = {                                       \
        DEEPLAB_FAST_INSTRUCTION_SETS(DEEPLAB_FAST_POINTER_TO_TABLE, Table, table)}; \
    return *tables[instruction_set()];                                               \
  }

// For a table's initialiser, in an *_isa.cpp file: the set's name; and a field with the function of the same name.
#define DEEPLAB_FAST_STRING_OF(name) #name
#define DEEPLAB_FAST_STRING(name) DEEPLAB_FAST_STRING_OF(name)
#define DEEPLAB_FAST_SET .set = DEEPLAB_FAST_STRING(DEEPLAB_FAST_ISA_NAME)
#define DEEPLAB_FAST_KERNEL(name) .name = name
