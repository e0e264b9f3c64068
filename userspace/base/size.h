// SPDX-License-Identifier: GPL-2.0-only
// Sizes as operators write them.
#pragma once

#include "base/result.h"

#include <cstdint>
#include <string>

namespace vql {

// "10G", "64K", "4096": bytes, a multiple of 512, 0…2^60. Suffixes K M G T, powers of 1024.
result<uint64_t> parse_size(const std::string& text);

} // namespace vql
