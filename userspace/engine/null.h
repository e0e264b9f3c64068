// SPDX-License-Identifier: GPL-2.0-only
// The null engine: answers everything at once and moves no data, for measuring all that is around
// an engine. A read leaves the guest's buffer as it was.
#pragma once

#include <vqlane/io.h>

namespace vql {

class null_engine {
  public:
    // A piece is finished on return; there is always room.
    static vql_status execute() { return VQL_STATUS_OK; }
};

} // namespace vql
