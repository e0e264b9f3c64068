// SPDX-License-Identifier: GPL-2.0-only
#include "base/signature.h"

#include <string>
#include <string_view>

namespace vql {

namespace {

using namespace std::string_view_literals;

struct magic {
    size_t offset;
    std::string_view bytes;
    const char* name;
};

// Little-endian where a format has both.
constexpr magic members[] = {
    // LVM's label is in one of the first four sectors, its type 24 bytes further.
    {0x018, "LVM2 001"sv, "an LVM physical volume"},
    {0x218, "LVM2 001"sv, "an LVM physical volume"},
    {0x418, "LVM2 001"sv, "an LVM physical volume"},
    {0x618, "LVM2 001"sv, "an LVM physical volume"},
    // Superblock 1.1 and 1.2; 0.90 and 1.0 are at the end of the device.
    {0, "\xfc\x4e\x2b\xa9"sv, "a member of an md array"},
    {4096, "\xfc\x4e\x2b\xa9"sv, "a member of an md array"},
    {4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca"sv, "a bcache device"},
    {0, "bluestore block device"sv, "a Ceph OSD"},
    {0, "SPDKBLOB"sv, "an SPDK blobstore"},
    {0, "integrt\0"sv, "a dm-integrity device"},
    {0, "dmvdo001"sv, "a VDO device"},
    {512 + 4, "!Stra0tis\x86\xff\x02^\x41rh"sv, "a member of a Stratis pool"},
};

constexpr magic images[] = {
    {0, "QFI\xfb\0\0\0\x01"sv, "a qcow image"},
    {0, "QFI\xfb"sv, "a qcow2 image"},
    {0, "QED\0"sv, "a QED image"},
    {0, "KDMV"sv, "a VMDK image"},
    {0, "COWD"sv, "a VMDK image"},
    {0, "# Disk DescriptorFile"sv, "a VMDK image's description"},
    {0, "vhdxfile"sv, "a VHDX image"},
    {0, "conectix"sv, "a VHD image"},
    {0x40, "\x7f\x10\xda\xbe"sv, "a VDI image"},
    {0, "WithoutFreeSpace"sv, "a Parallels image"},
    {0, "WithouFreSpacExt"sv, "a Parallels image"},
    {0, "Bochs Virtual HD Image"sv, "a Bochs image"},
};

// In the last 512 bytes.
constexpr magic image_ends[] = {
    {0, "conectix"sv, "a VHD image"},
    {0, "koly"sv, "a DMG image"},
};

// What guests too put on their disks.
constexpr magic contents[] = {
    {0, "LUKS\xba\xbe"sv, "a LUKS container"},
    {1080, "\x53\xef"sv, "an ext2, ext3 or ext4 file system"},
    {0, "XFSB"sv, "an XFS file system"},
    {0x10040, "_BHRfS_M"sv, "a btrfs file system"},
    {1024, "\x10\x20\xf5\xf2"sv, "an F2FS file system"},
    {3, "NTFS    "sv, "an NTFS file system"},
    {54, "FAT1"sv, "a FAT file system"},
    {82, "FAT32   "sv, "a FAT file system"},
    {4086, "SWAPSPACE2"sv, "a swap area"},
    {512, "EFI PART"sv, "a partition table"},
    {4096, "EFI PART"sv, "a partition table"}, // blocks of 4096 bytes
    {510, "\x55\xaa"sv, "a boot sector or partition table"},
};

std::string_view text(std::span<const uint8_t> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

bool holds(std::string_view head, size_t offset, std::string_view bytes) {
    return head.size() > offset && head.substr(offset, bytes.size()) == bytes;
}

template <size_t N>
const char* find(const magic (&known)[N], std::string_view head) {
    for (const magic& m : known)
        if (holds(head, m.offset, m.bytes))
            return m.name;
    return nullptr;
}

const char* member_by_head(std::string_view head) {
    if (const char* name = find(members, head))
        return name;
    // An array of 1 KiB uberblocks, of which those that were used have the magic.
    for (size_t at = 128 << 10; at < signature_bytes; at += 1024)
        if (holds(head, at, "\x0c\xb1\xba\0\0\0\0\0"sv))
            return "a member of a ZFS pool";
    // Its superblock's number of devices, 0x88 bytes in, is more than one.
    if (holds(head, 0x10040, "_BHRfS_M"sv) && head.size() >= 0x10090 &&
        head.substr(0x10088, 8) > "\1\0\0\0\0\0\0\0"sv) // little-endian, and few
        return "a part of a btrfs file system of several devices";
    return nullptr;
}

} // namespace

// Members first: a volume group's or an array's first member may show its content's magic as well.
signature signature_of(std::span<const uint8_t> head) {
    if (const char* name = member_by_head(text(head)))
        return {name, true};
    if (const signature image = image_signature(head, {}); image.name)
        return image;
    return {find(contents, text(head))};
}

signature image_signature(std::span<const uint8_t> head, std::span<const uint8_t> tail) {
    if (const char* name = find(images, text(head)))
        return {name};
    if (tail.size() < 512)
        return {};
    return {find(image_ends, text(tail.last(512)))};
}

signature member_signature(std::span<const uint8_t> head, std::span<const uint8_t> tail,
                           uint64_t bytes) {
    if (const char* name = member_by_head(text(head)))
        return {name, true};
    const auto ends_with = [&](uint64_t offset, std::string_view magic) {
        const uint64_t begin = bytes - tail.size();
        return offset >= begin && holds(text(tail), offset - begin, magic);
    };
    // md 1.0: 8 to 12 KiB before the end; 0.90: the last whole 64 KiB but the one that may be cut.
    if (bytes >= 16 << 10 && ends_with(((bytes >> 9) - 16) / 8 * 8 << 9, "\xfc\x4e\x2b\xa9"sv))
        return {"a member of an md array", true};
    if (bytes >= 128 << 10 && ends_with(bytes / 65536 * 65536 - 65536, "\xfc\x4e\x2b\xa9"sv))
        return {"a member of an md array", true};
    // DRBD's internal metadata: in the last 4 KiB, big-endian, of versions 0.7 to 9.
    for (const char version : {'\x6a', '\x6b', '\x6c', '\x6d'})
        if (bytes >= 4096 && ends_with(bytes / 4096 * 4096 - 4096 + 60,
                                       std::string{'\x83', '\x74', '\x02', version}))
            return {"a DRBD device", true};
    return {};
}

} // namespace vql
