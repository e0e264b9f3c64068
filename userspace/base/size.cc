// SPDX-License-Identifier: GPL-2.0-only
#include "base/size.h"

#include <vqlane/types.h>

#include <charconv>
#include <string_view>

namespace vql {

result<uint64_t> parse_size(const std::string& text) {
    constexpr uint64_t largest = 1ull << 60;
    constexpr std::string_view suffixes = "KMGT"; // 2^10, 2^20, …
    const char* const end = text.data() + text.size();
    uint64_t number = 0;
    unsigned shift = 0;

    auto [rest, status] = std::from_chars(text.data(), end, number);
    if (status == std::errc() && rest != end) {
        const size_t power = suffixes.find(*rest);
        if (power != suffixes.npos) {
            shift = 10 * (static_cast<unsigned>(power) + 1);
            rest++;
        }
    }
    if (status == std::errc::invalid_argument || rest != end)
        return error{"\"" + text +
                     "\" is not a size, expected bytes or a number with K, M, G or T"};
    if (status == std::errc::result_out_of_range || number > largest >> shift)
        return error{text + " is too large, expected at most 2^60 bytes"};
    number <<= shift;
    if (number % VQL_SECTOR_BYTES)
        return error{text + " is not a multiple of 512 bytes"};
    return number;
}

} // namespace vql
