// SPDX-License-Identifier: GPL-2.0-only
// Which word was meant: for errors that name the right one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace vql {

// The word of @known that @word is most likely a slip of: at most a third of its letters (at least
// one) left out, put in, changed or swapped with their neighbour; of equals the first. Empty when
// none is so near, or @word is one of them.
std::string_view nearest_word(std::string_view word, const std::vector<std::string_view>& known);

// "; did you mean \"list\"?", or nothing.
std::string did_you_mean(std::string_view word, const std::vector<std::string_view>& known);

} // namespace vql
