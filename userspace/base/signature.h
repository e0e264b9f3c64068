// SPDX-License-Identifier: GPL-2.0-only
// What the first and last bytes of a file or block device say that it holds. For telling an
// operator, not for deciding what is free: nothing found does not mean nothing there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace vql {

struct signature {
    const char* name = nullptr; // "an ext4 …"; nullptr: none that is known
    bool member = false;        // a part of something larger, as of a volume group
};

// As much of the beginning as these can use: ZFS has its uberblocks in the last half.
constexpr size_t signature_bytes = 256 << 10;
// … and of the end: md's oldest superblock is up to 128 KiB before it.
constexpr size_t signature_tail_bytes = 128 << 10;

// @head: the first bytes of the device, fewer where it is smaller. Of all kinds.
signature signature_of(std::span<const uint8_t> head);

// A disk image in a format of its own: qcow2, VMDK, … @tail: the last bytes.
signature image_signature(std::span<const uint8_t> head, std::span<const uint8_t> tail);

// A part of something larger: an LVM physical volume, a member of an array or pool. @bytes: the
// size of the whole.
signature member_signature(std::span<const uint8_t> head, std::span<const uint8_t> tail,
                           uint64_t bytes);

} // namespace vql
