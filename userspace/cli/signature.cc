// SPDX-License-Identifier: GPL-2.0-only
#include "cli/signature.h"

#include <string_view>

namespace vql {

namespace {

using namespace std::string_view_literals;

struct magic {
    size_t offset;
    std::string_view bytes;
    signature means;
};

// Members first: a volume group's or an array's first member may show its content's magic as well.
// Little-endian where a format has both.
constexpr magic known[] = {
    // LVM's label is in one of the first four sectors, its type 24 bytes further.
    {0x018, "LVM2 001"sv, {"an LVM physical volume", true}},
    {0x218, "LVM2 001"sv, {"an LVM physical volume", true}},
    {0x418, "LVM2 001"sv, {"an LVM physical volume", true}},
    {0x618, "LVM2 001"sv, {"an LVM physical volume", true}},
    // Superblock 1.1 and 1.2; 0.90 and 1.0 are at the end of the device.
    {0, "\xfc\x4e\x2b\xa9"sv, {"a member of an md array", true}},
    {4096, "\xfc\x4e\x2b\xa9"sv, {"a member of an md array", true}},
    {4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca"sv, {"a bcache device", true}},
    {0, "LUKS\xba\xbe"sv, {"a LUKS container"}},
    {1080, "\x53\xef"sv, {"an ext2, ext3 or ext4 file system"}},
    {0, "XFSB"sv, {"an XFS file system"}},
    {0x10040, "_BHRfS_M"sv, {"a btrfs file system"}},
    {1024, "\x10\x20\xf5\xf2"sv, {"an F2FS file system"}},
    {3, "NTFS    "sv, {"an NTFS file system"}},
    {54, "FAT1"sv, {"a FAT file system"}},
    {82, "FAT32   "sv, {"a FAT file system"}},
    {4086, "SWAPSPACE2"sv, {"a swap area"}},
    {512, "EFI PART"sv, {"a partition table"}},
    {4096, "EFI PART"sv, {"a partition table"}}, // blocks of 4096 bytes
    {510, "\x55\xaa"sv, {"a boot sector or partition table"}},
};

bool holds(std::string_view head, size_t offset, std::string_view bytes) {
    return head.size() > offset && head.substr(offset, bytes.size()) == bytes;
}

} // namespace

signature signature_of(std::span<const uint8_t> head) {
    const std::string_view text(reinterpret_cast<const char*>(head.data()), head.size());

    for (const magic& m : known)
        if (holds(text, m.offset, m.bytes))
            return m.means;
    // An array of 1 KiB uberblocks, of which those that were used have the magic.
    for (size_t at = 128 << 10; at < signature_bytes; at += 1024)
        if (holds(text, at, "\x0c\xb1\xba\0\0\0\0\0"sv))
            return {"a member of a ZFS pool", true};
    return {};
}

} // namespace vql
