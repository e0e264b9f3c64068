// SPDX-License-Identifier: GPL-2.0-only
// Targets by the id that extent words hold. Written by the control thread before any extent or
// message tells a poller of the id (release), read by pollers (acquire).
#pragma once

#include "engine/target.h"

#include <array>
#include <atomic>
#include <vqlane/limits.h>

namespace vql {

using target_table = std::array<std::atomic<target*>, VQL_MAX_TARGETS>;

} // namespace vql
