// SPDX-License-Identifier: GPL-2.0-only
// What is wrong with a command line that did not parse, in the command's own words.
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace vql {

// The first word of the command line that @app, or the subcommand that it is for, does not know,
// with the nearest one that it does: "\"lst\" is no command of \"vqlane disk\"; did you mean
// \"list\"?". Empty when all words are known: then something else is wrong.
std::string unknown_word(const CLI::App& app, int argc, const char* const* argv);

} // namespace vql
