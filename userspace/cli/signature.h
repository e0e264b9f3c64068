// SPDX-License-Identifier: GPL-2.0-only
// What the first bytes of a block device say that it holds. For telling an operator, not for
// deciding what is free: nothing found does not mean nothing there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace vql {

struct signature {
    const char* name = nullptr; // "an ext4 …"; nullptr: none that is known
    bool member = false;        // a part of something larger, as of a volume group
};

// As much of the beginning as signature_of() can use: ZFS has its uberblocks in the last half.
constexpr size_t signature_bytes = 256 << 10;

// @head: the first bytes of the device, fewer where it is smaller.
signature signature_of(std::span<const uint8_t> head);

} // namespace vql
