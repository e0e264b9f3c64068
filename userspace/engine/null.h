// SPDX-License-Identifier: GPL-2.0-only
// The null engine: answers everything at once and moves no data, for measuring all that is around
// an engine. A read leaves the guest's buffer as it was.
#pragma once

#include "engine/piece.h"

namespace vql {

class null_engine {
  public:
    // Always takes the piece, and it is finished on return.
    static vql_status execute(const piece&) { return VQL_STATUS_OK; }
};

} // namespace vql
