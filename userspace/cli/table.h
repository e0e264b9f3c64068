// SPDX-License-Identifier: GPL-2.0-only
// Text for people: columns that line up, sizes and times with units.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vql {

struct column {
    const char* heading;
    bool numeric = false; // flush right
    bool gives = false;   // its cells are shortened, in their middle, where a row would be too long
};

class table {
  public:
    explicit table(std::vector<column> columns) : columns_(std::move(columns)) {}
    // At most one cell a column; the rest are empty. Control characters are shown as '?', so that a
    // row stays a line.
    void add(std::vector<std::string> row);
    // The headings and all rows, each ending with a newline. Where that would be more than @width
    // characters a row (0: no matter), the widest columns that give are narrowed, to 8 at least.
    std::string text(size_t width = 0) const;

  private:
    std::vector<column> columns_;
    std::vector<std::vector<std::string>> rows_;
};

// @text in at most @width characters (at least 3): what is too much in its middle is "..".
std::string shortened(const std::string& text, size_t width);
// "512", "64K", "1.5G": powers of 1024, rounded to one decimal.
std::string human_size(uint64_t bytes);
// "950ns", "12.3us", "1.25ms", "90.0s": three digits.
std::string human_duration(uint64_t ns);
// A cell that says that there is nothing.
inline std::string or_dash(const std::string& text) {
    return text.empty() ? "-" : text;
}
// A number with @decimals digits behind the point.
std::string fixed(double value, int decimals);

} // namespace vql
