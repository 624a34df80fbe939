// Package stages declares the graphs of the tool's work and holds the bodies of their stages, one file each.
package stages
