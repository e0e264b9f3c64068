// SPDX-License-Identifier: GPL-2.0-only
#include "base/nearest.h"

#include <algorithm>

namespace vql {

namespace {

// Longer ones are no slips, and the table is quadratic.
constexpr size_t max_letters = 64;

// Optimal string alignment distance: insertions, deletions, changes, swaps of neighbours.
size_t distance(std::string_view a, std::string_view b) {
    std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
    for (size_t i = 0; i <= a.size(); i++)
        d[i][0] = i;
    for (size_t j = 0; j <= b.size(); j++)
        d[0][j] = j;
    for (size_t i = 1; i <= a.size(); i++) {
        for (size_t j = 1; j <= b.size(); j++) {
            const size_t change = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, change});
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
        }
    }
    return d[a.size()][b.size()];
}

} // namespace

std::string_view nearest_word(std::string_view word, const std::vector<std::string_view>& known) {
    std::string_view best;
    if (word.empty() || word.size() > max_letters)
        return best;
    size_t least = std::max<size_t>(1, word.size() / 3) + 1;
    for (const std::string_view k : known) {
        if (k.size() > max_letters)
            continue;
        const size_t far = distance(word, k);
        if (far == 0)
            return {};
        if (far < least) {
            least = far;
            best = k;
        }
    }
    return best;
}

std::string did_you_mean(std::string_view word, const std::vector<std::string_view>& known) {
    const std::string_view best = nearest_word(word, known);
    return best.empty() ? "" : "; did you mean \"" + std::string(best) + "\"?";
}

} // namespace vql
