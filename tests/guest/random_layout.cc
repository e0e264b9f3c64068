// SPDX-License-Identifier: GPL-2.0-only
#include "random_layout.h"

#include <algorithm>
#include <cstring>

namespace vql::guest {
namespace {

constexpr uint64_t guard_bytes = 8;
constexpr std::byte guard_pattern{0x5a};
constexpr uint32_t header_bytes = sizeof(blk_header);

// Lengths of the pieces of one stream; no allocation per request.
struct cuts {
    std::array<uint32_t, max_segments> bytes;
    unsigned count = 0;
    void add(uint64_t length) { bytes[count++] = static_cast<uint32_t>(length); }
};

enum class framing { plain, sectors, wild };

// The header's own cuts; returns how many of its bytes are left to be joined to the data.
uint32_t cut_header(random_source& random, framing style, cuts& out) {
    if (style != framing::wild) {
        out.add(header_bytes);
        return 0;
    }
    switch (random.below(5)) {
    case 0:
        out.add(8);
        out.add(8);
        return 0;
    case 1:
        for (int i = 0; i < 4; i++) {
            out.add(4);
        }
        return 0;
    case 2: {
        uint64_t first = random.between(1, header_bytes - 1);
        out.add(first);
        out.add(header_bytes - first);
        return 0;
    }
    case 3: {
        uint32_t first = static_cast<uint32_t>(random.below(header_bytes)); // some or all joined
        if (first != 0) {
            out.add(first);
        }
        return header_bytes - first;
    }
    default: out.add(header_bytes); return 0;
    }
}

// Cuts bytes into at most max_pieces pieces, each a multiple of grain but for the last.
void cut_data(random_source& random, uint64_t bytes, uint64_t grain, unsigned max_pieces,
              cuts& out) {
    static constexpr unsigned usual[] = {1, 1, 2, 3, 8, 32, 128};
    uint64_t pieces = std::min<uint64_t>(usual[random.below(std::size(usual))], max_pieces);
    if (max_pieces > 128 && random.chance(40)) {
        pieces = random.between(128, max_pieces);
    }
    while (bytes != 0) {
        uint64_t piece = bytes;
        uint64_t grains = bytes / grain;
        if (pieces > 1 && grains > 1) {
            uint64_t most = std::max<uint64_t>(1, 2 * grains / pieces);
            piece = std::min(random.between(1, most), grains - 1) * grain;
        }
        out.add(piece);
        bytes -= piece;
        pieces -= pieces > 1 ? 1 : 0;
    }
}

void add_empty_pieces(random_source& random, cuts& out, unsigned room) {
    for (uint64_t n = std::min<uint64_t>(room, random.below(4)); n > 0; n--) {
        // Never last: the last writable descriptor holds the status byte.
        unsigned at = static_cast<unsigned>(random.below(out.count));
        std::copy_backward(out.bytes.begin() + at, out.bytes.begin() + out.count,
                           out.bytes.begin() + out.count + 1);
        out.bytes[at] = 0;
        out.count++;
    }
}

uint64_t aligned_up(uint64_t value, uint64_t align) {
    return (value + align - 1) / align * align;
}

// Gives each piece of the chain its address: in a random order through the arena, with guards.
void place_pieces(random_source& random, guest_memory& memory, const arena& place, framing style,
                  blk_request& request) {
    std::array<uint16_t, max_segments> order;
    for (uint16_t i = 0; i < request.segments; i++) {
        order[i] = i;
    }
    bool in_sequence = random.chance(30);
    if (!in_sequence) {
        random.shuffle(std::span(order).first(request.segments));
    }
    bool touching = style == framing::wild && in_sequence && random.chance(50);
    uint64_t align = style == framing::plain ? 4096 : style == framing::sectors ? 512 : 1;
    uint64_t gpa = place.gpa + guard_bytes + (touching ? random.below(64) : 0);
    for (uint16_t i = 0; i < request.segments; i++) {
        segment& piece = request.chain[order[i]];
        if (!touching) {
            uint64_t own_align = piece.bytes >= sector_bytes ? align : 1;
            gpa = aligned_up(gpa + (align == 1 ? random.below(64) : 0), own_align);
        }
        piece.gpa = gpa;
        gpa += piece.bytes + (touching ? 0 : 2 * guard_bytes);
    }
    if (gpa + guard_bytes > place.gpa + place.bytes) {
        throw guest_error("the arena is too small for the request");
    }
    for (const segment& piece : request.parts()) {
        std::memset(memory.at(piece.gpa - guard_bytes), static_cast<int>(guard_pattern),
                    guard_bytes);
        std::memset(memory.at(piece.gpa + piece.bytes), static_cast<int>(guard_pattern),
                    guard_bytes);
    }
}

void scatter(guest_memory& memory, const blk_request& request, std::span<const std::byte> header,
             std::span<const std::byte> out) {
    for (const segment& piece : request.parts()) {
        std::byte* at = memory.at(piece.gpa);
        if (piece.device_writes) {
            std::memset(at, 0xdb, piece.bytes);
            continue;
        }
        size_t from_header = std::min<size_t>(piece.bytes, header.size());
        std::memcpy(at, header.data(), from_header);
        header = header.subspan(from_header);
        size_t from_out = piece.bytes - from_header;
        if (from_out != 0) {
            std::memcpy(at + from_header, out.data(), from_out);
            out = out.subspan(from_out);
        }
    }
}

} // namespace

void shape_randomly(random_source& random, guest_memory& memory, const arena& place,
                    const layout_options& options, blk_request& request,
                    std::span<const std::byte> out, uint32_t data_in) {
    static constexpr framing framings[] = {framing::plain, framing::sectors, framing::wild,
                                           framing::wild};
    framing style = framings[random.below(options.misaligned ? 4 : 2)];
    uint64_t grain = style == framing::plain ? 4096 : style == framing::sectors ? 512 : 1;
    // Room for a header in four pieces, a status, and three empty descriptors on each side.
    unsigned pieces = std::min(options.max_pieces, options.max_descriptors - 11);

    cuts readable;
    uint32_t joined = cut_header(random, style, readable);
    if (joined + out.size() != 0) {
        // Without data to join it is the header alone that is cut, into no more than four.
        cut_data(random, joined + out.size(), joined != 0 ? 1 : grain, out.empty() ? 3 : pieces,
                 readable);
    }
    cuts writable;
    bool status_alone = data_in == 0 || style != framing::wild || random.chance(50);
    if (data_in != 0) {
        cut_data(random, status_alone ? data_in : data_in + 1, grain, pieces, writable);
    }
    if (status_alone) {
        writable.add(1);
    }
    if (options.zero_length && style == framing::wild && random.chance(25)) {
        add_empty_pieces(random, readable, 3);
        add_empty_pieces(random, writable, 3);
    }

    request.segments = 0;
    for (unsigned i = 0; i < readable.count; i++) {
        request.chain[request.segments++] = {0, readable.bytes[i], false};
    }
    for (unsigned i = 0; i < writable.count; i++) {
        request.chain[request.segments++] = {0, writable.bytes[i], true};
    }
    request.data_in = data_in;
    place_pieces(random, memory, place, style, request);
    const segment& last = request.chain[request.segments - 1u];
    request.status_gpa = last.gpa + last.bytes - 1;
    blk_header header{request.type, 0, request.sector};
    scatter(memory, request, std::as_bytes(std::span(&header, 1)), out);
}

size_t compare_in(const guest_memory& memory, const blk_request& request,
                  std::span<const std::byte> expected) {
    size_t done = 0;
    for (const segment& piece : request.parts()) {
        if (!piece.device_writes) {
            continue;
        }
        size_t bytes = std::min<size_t>(piece.bytes, expected.size() - done);
        const std::byte* got = memory.at(piece.gpa);
        if (std::memcmp(got, expected.data() + done, bytes) != 0) {
            return done + static_cast<size_t>(
                              std::mismatch(got, got + bytes, expected.data() + done).first - got);
        }
        done += bytes;
    }
    return done;
}

bool guards_intact(const guest_memory& memory, const blk_request& request) {
    auto intact = [&memory](uint64_t gpa) {
        const std::byte* at = memory.at(gpa);
        return std::all_of(at, at + guard_bytes,
                           [](std::byte value) { return value == guard_pattern; });
    };
    for (uint16_t i = 0; i < request.segments; i++) {
        const segment& piece = request.chain[i];
        bool touches_before =
            i > 0 && request.chain[i - 1u].gpa + request.chain[i - 1u].bytes == piece.gpa;
        bool touches_after =
            i + 1 < request.segments && piece.gpa + piece.bytes == request.chain[i + 1u].gpa;
        if ((!touches_before && !intact(piece.gpa - guard_bytes)) ||
            (!touches_after && !intact(piece.gpa + piece.bytes))) {
            return false;
        }
    }
    return true;
}

std::string describe(const blk_request& request) {
    std::string text = "type " + std::to_string(request.type) + " sector " +
                       std::to_string(request.sector) + " queue " + std::to_string(request.queue) +
                       (request.indirect ? " indirect:" : " direct:");
    for (const segment& piece : request.parts()) {
        text += (piece.device_writes ? " w" : " r") + std::to_string(piece.bytes) + "@" +
                hex(piece.gpa);
    }
    return text;
}

} // namespace vql::guest
