// Kernels for one instruction set. The build compiles this file several times, with CRF_ISA set to the set's name and
// compiler flags to match; everything it includes has internal linkage, so that the copies do not clash.
#include "meanfield.hpp"

#define CRF_JOIN(a, b) a##b
#define CRF_NAME(isa) CRF_JOIN(run_, isa)

namespace crf {

void CRF_NAME(CRF_ISA)(Workspace& work, const Request& ask, Outcome& outcome) { run_mean_field(work, ask, outcome); }

}  // namespace crf
