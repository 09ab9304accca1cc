// The path under which the pages are shown, empty for the root of an origin.
module.exports = { basePath: process.env.BASE_PATH || "" };
