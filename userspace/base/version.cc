// SPDX-License-Identifier: GPL-2.0-only
#include "base/version.h"

// The Makefile defines it, for this file alone: a commit compiles one file anew.
#ifndef VQL_VERSION
#define VQL_VERSION "unknown"
#endif

namespace vql {

const char* version() {
    return VQL_VERSION;
}

} // namespace vql
