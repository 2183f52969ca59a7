// Dispatch of the kernels by instruction set: the builds that this processor can run, and the widest of them.
#include <cstring>

#if defined(CRF_X86)
#include <cpuid.h>
#endif

#include "workspace.hpp"

namespace crf {

void run_baseline(Workspace&, const Request&, Outcome&);
#if defined(CRF_X86)
void run_avx2(Workspace&, const Request&, Outcome&);
void run_avx512(Workspace&, const Request&, Outcome&);

namespace {
// __builtin_cpu_supports knows the name f16c from GCC 11 on only.
bool has_f16c() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}
}  // namespace
#endif

const char* best_isa() {
#if defined(CRF_X86)
    __builtin_cpu_init();
    if (has_avx512()) return "avx512";
    if (has_avx2()) return "avx2";
#endif
    return "baseline";
}

Run kernels(const char* isa) {
    if (std::strcmp(isa, "baseline") == 0) return run_baseline;
#if defined(CRF_X86)
    __builtin_cpu_init();
    if (std::strcmp(isa, "avx2") == 0 && has_avx2()) return run_avx2;
    if (std::strcmp(isa, "avx512") == 0 && has_avx512()) return run_avx512;
#endif
    return nullptr;
}

}  // namespace crf
